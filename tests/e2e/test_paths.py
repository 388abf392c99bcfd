"""Where a peer is changes, or is not where it seems to be."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.e2e.field import (
    APPLICATION,
    INNER,
    OUTSIDE,
    RELAY_V6,
    Field,
    exchange,
    exchange_back,
    register,
    repeat,
    report_from,
)
from tests.integration.packets import read_icmp, sized_udp_packet
from tests.integration.peers import PATIENCE, WirePeer

Words = Path | tuple[str, ...]

# Building the peer may take minutes; each wait has its own, shorter limit.
pytestmark = pytest.mark.timeout(900)


async def test_a_client_that_moves_to_another_network(field: Field, program: Words) -> None:
    await field.start_relay("--client-auth", "optional")
    agent, connector = await field.peer(field.agent, program), await field.peer(field.connector)
    assert (await agent.observed())[0] == "10.1.0.2"
    await register(agent, connector)
    await exchange(agent, connector)

    field.cable(4, field.router, field.agent)
    field.route_back(4)
    field.use_cable(4)
    field.agent.ip(f"link del {field.agent_cable}")
    await exchange(agent, connector)
    moved = await report_from(agent, "10.4.0.2")
    if not isinstance(program, Path):
        while (await agent.frame()) != f"{moved[0]}:{moved[1]}":
            pass
    await exchange(agent, connector)
    assert not field.lost_connections()


async def test_a_client_behind_a_nat(field: Field, program: Words) -> None:
    field.router.masquerade(field.middle_cable, (20_000, 20_100))
    await field.start_relay("--client-auth", "optional")
    agent, connector = await field.peer(field.agent, program), await field.peer(field.connector)
    host, port = await agent.observed()
    assert host == OUTSIDE
    assert 20_000 <= port <= 20_100
    await register(agent, connector)
    await exchange(agent, connector)

    # The NAT restarts and gives the flow another port.
    field.router.masquerade(field.middle_cable, (30_000, 30_100))
    field.router.forget_flows()
    await exchange(agent, connector)
    host, port = await report_from(agent, OUTSIDE)
    assert 30_000 <= port <= 30_100
    await exchange(agent, connector)
    assert not field.lost_connections()


async def test_both_families_at_once(field: Field, program: Words) -> None:
    await field.start_relay("--client-auth", "optional", bind="::")
    agent = await field.peer(field.agent, program)
    connector = await field.peer(field.connector, address=RELAY_V6)
    assert (await agent.observed())[0] == "10.1.0.2"
    assert (await connector.observed())[0] == "fd00:3::2"
    await register(agent, connector)
    await exchange(agent, connector)


@pytest.mark.parametrize("mtu", [1280, 1400])
async def test_a_small_mtu_in_the_middle(field: Field, program: Words, mtu: int) -> None:
    field.narrow(mtu)
    await field.start_relay("--client-auth", "optional")
    agent, connector = await field.peer(field.agent, program), await field.peer(field.connector)
    await register(agent, connector)
    # What every path carries: the 1200 bytes that QUIC begins with, without its own headers.
    await exchange(agent, connector, size=1_100)
    limit = await told_limit(connector, below=mtu - 28)
    await exchange(agent, connector, size=min(limit, 1_200))
    await exchange_back(agent, connector, size=limit)
    assert not field.lost_connections()


async def test_an_mtu_that_shrinks(field: Field, program: Words) -> None:
    await field.start_relay("--client-auth", "optional")
    agent, connector = await field.peer(field.agent, program), await field.peer(field.connector)
    await register(agent, connector)
    await exchange(agent, connector, size=1_250)
    field.narrow(1280)
    limit = await told_limit(connector, below=1280 - 28)
    await exchange_back(agent, connector, size=limit)
    await exchange(agent, connector, size=1_100)
    assert not field.lost_connections()


async def told_limit(connector: WirePeer, *, below: int) -> int:
    """Send packets to the agent that are too large, until the relay says what would fit, and that fits."""
    too_large = sized_udp_packet(APPLICATION, INNER, 1_400)
    async with asyncio.timeout(2 * PATIENCE):
        while True:
            # It is lost without an answer while the relay takes it to fit.
            answer = read_icmp(await repeat(connector, too_large, connector.packet()))
            assert (answer.kind, answer.code) == (3, 4), "fragmentation needed"
            limit = answer.rest & 0xFFFF
            assert limit >= 1_100
            if limit < below:
                return limit
            # The relay has yet to learn it, from the loss of packets that it takes to fit.
            await connector.send(sized_udp_packet(APPLICATION, INNER, limit))
