"""Clients in the field whose connections change, and how they end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.packets import Address, read_icmp, read_udp, udp_packet
from tests.integration.peers import (
    AGENT,
    CONNECTOR,
    PATIENCE,
    quiche_program,
    to_service,
)
from tests.integration.quiche_field import (
    APPLICATION,
    INNER,
    SERVICE,
    Field,
    backend,
    exchange,
    field,
    retired,
    steps_until,
)

__all__ = ["backend", "field", "quiche_program"]

if TYPE_CHECKING:
    from tests.integration.quiche_field import StartServer

pytestmark = pytest.mark.timeout(900)


async def test_connection_ids_from_the_client(field: Field, backend: Address) -> None:
    """Fault 16: ids in use were thrown away.

    The clients issue one after 300 s: the server uses it, and a spare one on a new path (RFC 9000 section 9.5).
    """
    async with field.pair() as (agent, connector):
        await connector.forward(backend)
        await agent.new_cid()
        await exchange(agent, b"first", backend)
        await retired(agent, 1)
        await agent.new_cid()
        await exchange(agent, b"spare", backend)
        _, port = await agent.rebind()
        await exchange(agent, b"after", backend)
        assert await agent.observed() == ("127.0.0.1", port)
        await retired(agent, 2)


async def test_the_server_rotates_connection_ids(
    quiche_program: Path, start_server: StartServer, backend: Address
) -> None:
    """Fault 8: none was ever replaced. The clients follow each time, and nothing is lost on the way."""
    server = await start_server("--client-auth", "optional", "--cid-lifetime", "1s")
    async with Field(quiche_program, server).pair() as (agent, connector):
        await connector.forward(backend)
        seen: set[str] = set()
        with steps_until(PATIENCE) as check:
            turn = 0
            while len(seen) < 3:
                check()
                turn += 1
                await exchange(agent, f"turn {turn}".encode(), backend)
                seen.add((await agent.stats())["dcid"])
                await asyncio.sleep(0.02)


async def test_a_killed_connector_is_gone_after_the_idle_timeout(
    quiche_program: Path, start_server: StartServer, backend: Address
) -> None:
    server = await start_server("--client-auth", "optional", "--idle-timeout", "2s")
    async with Field(quiche_program, server).pair() as (agent, connector):
        await connector.forward(backend)
        await exchange(agent, b"alive", backend)
        await connector.kill()
        with steps_until(PATIENCE) as check:
            while agent.inbox.packets.empty():
                check()
                await agent.send(to_service(SERVICE, udp_packet(INNER, APPLICATION, b"still there?")))
                await asyncio.sleep(0.05)
        answer = read_icmp(await agent.packet())
        assert (answer.kind, answer.code) == (3, 1), "host unreachable"
        # A new one takes the service at once.
        async with Field(quiche_program, server).join("connector", CONNECTOR) as successor:
            await agent.send(to_service(SERVICE, udp_packet(INNER, APPLICATION, b"welcome")))
            assert read_udp(await successor.packet()).payload == b"welcome"


async def test_a_client_that_closes_is_gone_at_once(field: Field) -> None:
    async with field.pair() as (agent, connector):
        await connector.close()
        await field.server.wait_log("Connection closed")
        await agent.send(to_service(SERVICE, udp_packet(INNER, APPLICATION, b"anyone?")))
        answer = read_icmp(await agent.packet())
        assert (answer.kind, answer.code) == (3, 1), "host unreachable"


async def test_clients_end_by_themselves_after_a_shutdown(field: Field) -> None:
    async with field.pair() as (agent, connector), field.join("test-client", AGENT) as third:
        await field.server.terminate()
        for peer in (agent, connector, third):
            assert await peer.closed() == await peer.draining(), "after three times the probe timeout"
