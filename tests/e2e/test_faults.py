"""Networks that lose packets, refuse them, or go away for a while."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.field import APPLICATION, INNER, PYTHON_PEER, Field, arrival, exchange, register, repeat
from tests.e2e.netns import Host, sockets_of
from tests.integration.packets import udp_packet
from tests.integration.peers import PATIENCE, QuichePeer

Words = Path | tuple[str, ...]

pytestmark = pytest.mark.timeout(900)

IP_RECVERR = 11
"""The socket option of ip(7), which Python 3.11 has no name for."""

OUTAGE = 5.0
"""Seconds without a network: long beside any retransmission, short beside the idle timeout."""


def _refuse_in_queue(field: Field) -> None:
    """Let a queue that holds nothing refuse what leaves the relay, and the kernel say so: it does only when asked."""
    for sock in sockets_of(field.relay.process.pid, socket.SOCK_DGRAM):
        with sock:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    field.middle.run(*f"tc qdisc add dev {field.middle_cable} root bfifo limit 1".split())


REFUSALS: dict[str, tuple[Callable[[Field], object], Callable[[Field], object]]] = {
    "ENETUNREACH": (
        lambda field: field.middle.ip("route del 10.1.0.0/24"),
        lambda field: field.middle.ip("route replace 10.1.0.0/24 via 10.2.0.1"),
    ),
    "EHOSTUNREACH": (
        lambda field: field.middle.ip("route replace unreachable 10.1.0.0/24"),
        lambda field: field.middle.ip("route replace 10.1.0.0/24 via 10.2.0.1"),
    ),
    "EACCES": (
        lambda field: field.middle.ip("route replace prohibit 10.1.0.0/24"),
        lambda field: field.middle.ip("route replace 10.1.0.0/24 via 10.2.0.1"),
    ),
    "ENOBUFS": (
        _refuse_in_queue,
        lambda field: field.middle.run("tc", "qdisc", "del", "dev", field.middle_cable, "root"),
    ),
    "EPERM": (
        lambda field: field.middle.nft(
            "add table inet refuse; add chain inet refuse out { type filter hook output priority 0; };"
            "add rule inet refuse out ip daddr 10.1.0.0/24 drop"
        ),
        lambda field: field.middle.nft("delete table inet refuse"),
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_sends_that_the_kernel_refuses(field: Field, refusal: str) -> None:
    await field.start_relay("--client-auth", "optional")
    agent, connector = await field.peer(field.agent), await field.peer(field.connector)
    await register(agent, connector)
    await exchange(agent, connector)
    before = field.metric("ztna_udp_errors_total")
    refuse, allow = REFUSALS[refusal]
    refuse(field)
    async with asyncio.timeout(PATIENCE):
        while field.metric("ztna_udp_errors_total") < before + 5:
            await connector.send(udp_packet(APPLICATION, INNER, b"into the void"))
            await asyncio.sleep(0.05)
    # Others do not notice.
    other = await field.peer(field.connector)
    await register(other, connector, b"other")
    allow(field)
    await exchange(agent, connector)
    assert not field.lost_connections()


@pytest.mark.parametrize("percent", [2, 10])
async def test_loss(field: Field, program: Words, percent: int) -> None:
    # Six handshakes one after the other, each of which may take seconds here, and only then registrations.
    patient = ("--registration-timeout", "2m", "--handshake-timeout", "1m")
    await field.start_relay("--client-auth", "optional", *patient)
    # On the way to the relay, and on the way from it.
    for host in (field.middle, field.agent, field.connector):
        host.lose(percent)
    connector = await field.peer(field.connector)
    agents = [await field.peer(field.agent, program) for _ in range(5)]
    for agent in agents:
        await register(agent, connector)
    sent = 200
    for number in range(sent):
        # So large that no two share a UDP datagram, and are lost together.
        await agents[0].send(udp_packet(INNER, APPLICATION, f"number {number}".encode().ljust(700)))
    arrived = await repeat(agents[0], udp_packet(INNER, APPLICATION, b"the last"), _count(connector, b"the last"))
    # Two lossy ways: 81 % arrive, give or take 3 %; 40 % would be a relay that makes it worse.
    assert arrived > sent * 0.6
    for agent in agents:
        await exchange(agent, connector)
    assert field.middle.lost() > 0
    assert not field.lost_connections()


async def _count(peer: QuichePeer, last: bytes) -> int:
    """How many packets come before the last one."""
    count = 0
    while not (await peer.packet()).endswith(last):
        count += 1
    return count


@pytest.mark.parametrize("which", ["router", "relay"])
async def test_a_link_that_is_down_for_seconds(field: Field, program: Words, which: str) -> None:
    cable = {"router": (field.router, field.agent_cable), "relay": (field.middle, field.middle_cable)}[which]
    await _outage(field, program, *cable)


async def test_an_agent_whose_own_link_is_down_for_seconds(field: Field) -> None:
    # The clients in the field end at such an error of their own socket.
    await _outage(field, PYTHON_PEER, field.agent, field.agent_cable)


async def _outage(field: Field, program: Words, host: Host, cable: str) -> None:
    await field.start_relay("--client-auth", "optional")
    agent, connector = await field.peer(field.agent, program), await field.peer(field.connector)
    await register(agent, connector)
    await exchange(agent, connector)
    host.ip(f"link set {cable} down")
    sending = asyncio.create_task(_send_on(agent, connector))
    await asyncio.sleep(OUTAGE)
    sending.cancel()
    host.ip(f"link set {cable} up")
    # Its routes went with it.
    field.use_cable(1)
    field.route_back(1)
    await exchange(agent, connector)
    assert not field.lost_connections()


async def _send_on(*peers: QuichePeer) -> None:
    while True:
        for peer in peers:
            await peer.send(udp_packet(INNER, APPLICATION, b"into the void"))
        await asyncio.sleep(0.05)


async def test_a_link_slower_than_what_is_sent(field: Field) -> None:
    await field.start_relay("--client-auth", "optional")
    agent, connector = await field.peer(field.agent), await field.peer(field.connector)
    await register(agent, connector)
    field.middle.run(*f"tc qdisc add dev {field.connector_cable} root tbf rate 2mbit burst 4k limit 8k".split())
    # 8 Mbit at once: far beyond what the queue of the link holds.
    await agent.send_many(udp_packet(INNER, APPLICATION, bytes(1_000)), 1_000)
    await arrival(connector, bytes(1_000))
    field.middle.run(*f"tc qdisc del dev {field.connector_cable} root".split())
    await exchange(agent, connector)
    assert not field.lost_connections()
