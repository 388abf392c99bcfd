"""The network most tests need: an agent behind a router, a relay, and a connector on the other side of it.

::

    agent 10.1.0.2 -- 10.1.0.1 router 10.2.0.1 -- 10.2.0.2 relay (10.9.0.1) 10.3.0.1 -- 10.3.0.2 connector

and the same in IPv6 with ``fd00:1::2`` for 10.1.0.2 and so on.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from intermediate_server.testing import Relay
from tests.e2e.netns import Host, Network
from tests.integration.packets import read_udp, udp_packet
from tests.integration.peers import AGENT, CONNECTOR, PATIENCE, QuichePeer, WirePeer

RELAY_V4, RELAY_V6 = "10.9.0.1", "fd00:9::1"
OUTSIDE = "10.2.0.1"
"""Where the agent is seen when the router translates addresses."""
INNER, APPLICATION = ("100.64.0.1", 5_000), ("10.0.0.5", 53)
PYTHON_PEER = (sys.executable, str(Path(__file__).with_name("peer.py")))
METRICS_PORT = 9090

T = TypeVar("T")
_tokens = itertools.count(1)


class Stage:
    """A network with a relay, once it is started, on one of its hosts."""

    relay: Relay

    def __init__(self, network: Network, running: AsyncExitStack, directory: Path) -> None:
        self.network = network
        self.running = running
        self.directory = directory
        self.middle = network.host()
        """Where the relay runs."""

    async def start_relay(self, *flags: str, bind: str = "0.0.0.0", port: int = 0) -> Relay:
        """Start the relay; clients find it at ``RELAY_V4``."""
        self.relay = await self.running.enter_async_context(
            await Relay.begin(
                self.directory / "relay",
                "--metrics-port",
                str(METRICS_PORT),
                *flags,
                bind=bind,
                port=port,
                within=self.middle.within,
            )
        )
        self.relay.address = (RELAY_V4, self.relay.address[1])
        return self.relay

    def metric(self, name: str) -> float:
        """The sum of a metric of the relay over its labels."""
        text = self.middle.run("curl", "-sS", f"http://127.0.0.1:{METRICS_PORT}/metrics")
        lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.split()[-1]) for line in lines)


class Field(Stage):
    """The hosts, the cables between them, and a relay once it is started."""

    def __init__(self, network: Network, running: AsyncExitStack, directory: Path) -> None:
        super().__init__(network, running, directory)
        self.agent, self.router, self.connector = (network.host() for _ in range(3))
        self.agent_cable = self.cable(1, self.router, self.agent)
        self.middle_cable = self.cable(2, self.router, self.middle)
        self.connector_cable = self.cable(3, self.middle, self.connector)
        for host in (self.router, self.middle):
            host.forward()
        self.middle.ip(f"addr add {RELAY_V4}/32 dev lo")
        self.middle.ip(f"addr add {RELAY_V6}/128 dev lo nodad")
        for v4, v6 in ((RELAY_V4, RELAY_V6), ("10.3.0.0/24", "fd00:3::/64")):
            self.router.route(v4, "10.2.0.2")
            self.router.route(v6, "fd00:2::2")
        self.use_cable(1)
        self.connector.route("default", "10.3.0.1")
        self.connector.route("default", "fd00:3::1")
        self.route_back(1)

    def cable(self, number: int, first: Host, second: Host, *, mtu: int = 1500) -> str:
        """A cable with the addresses 10.N.0.1 and 10.N.0.2 at its ends; returns its name."""
        pairs = [(f"10.{number}.0.1/24", f"10.{number}.0.2/24"), (f"fd00:{number}::1/64", f"fd00:{number}::2/64")]
        name = self.network.link(first, second, pairs, mtu=mtu)
        for host in (first, second):
            # One packet at a time, as on a real cable: what the router drops is one datagram and not a batch.
            host.ip(f"link set {name} gso_max_segs 1")
        return name

    def use_cable(self, number: int) -> None:
        """Let the agent's packets leave by this cable to the router."""
        self.agent.route("default", f"10.{number}.0.1")
        self.agent.route("default", f"fd00:{number}::1")

    def route_back(self, number: int) -> None:
        """Let the relay's packets for the agent's end of this cable pass through the router."""
        self.middle.route(f"10.{number}.0.0/24", "10.2.0.1")
        self.middle.route(f"fd00:{number}::/64", "fd00:2::1")

    def narrow(self, mtu: int) -> None:
        """Let the cable between router and relay carry no more than ``mtu`` bytes."""
        for host in (self.router, self.middle):
            host.ip(f"link set {self.middle_cable} mtu {mtu}")

    async def peer(
        self, host: Host, program: Path | tuple[str, ...] = PYTHON_PEER, *, address: str = RELAY_V4
    ) -> QuichePeer:
        """A connected peer on a host."""
        words = (*host.within, *([str(program)] if isinstance(program, Path) else program))
        server = (address, self.relay.address[1])
        starting = QuichePeer.start(words, "test-client", server, ca_file=self.relay.ca_file)
        peer = await self.running.enter_async_context(starting)
        await peer.connected()
        return peer

    def lost_connections(self) -> list[str]:
        """What the relay logged of connections that have ended."""
        events = (str(line["event"]) for line in self.relay.lines)
        return [event for event in events if event.startswith("Connection closed")]


async def register(agent: WirePeer, connector: WirePeer, service: bytes = b"web") -> None:
    """Register both, as often as it takes: a DATAGRAM may be lost."""
    for peer, kind in ((connector, CONNECTOR), (agent, AGENT)):
        await repeat(peer, bytes([kind, len(service)]) + service, peer.reply())


async def exchange(agent: WirePeer, connector: WirePeer, *, size: int = 0) -> None:
    """A packet of ``size`` bytes or more from agent to connector and one back, sent until they arrive."""
    payload = _payload(size)
    source = await repeat(agent, udp_packet(INNER, APPLICATION, payload), arrival(connector, payload))
    await exchange_back(agent, connector, size=size, to=source)


async def exchange_back(agent: WirePeer, connector: WirePeer, *, size: int = 0, to: tuple[str, int] = INNER) -> None:
    """A packet of ``size`` bytes or more from connector to agent, sent until it arrives."""
    payload = _payload(size)
    await repeat(connector, udp_packet(APPLICATION, to, payload), arrival(agent, payload))


def _payload(size: int) -> bytes:
    number = f"packet {next(_tokens)} ".encode()
    return number + bytes(max(0, size - 28 - len(number)))


async def arrival(peer: WirePeer, payload: bytes) -> tuple[str, int]:
    """Wait for an inner UDP packet with this payload; returns its source."""
    while True:
        packet = await peer.packet()
        if packet[9] == 17 and packet.endswith(payload):
            return read_udp(packet).source


async def repeat(peer: WirePeer, datagram: bytes, answer: Coroutine[Any, Any, T]) -> T:
    """Send until the answer has come."""
    waiting = asyncio.ensure_future(answer)
    try:
        async with asyncio.timeout(PATIENCE):
            while not waiting.done():
                await peer.send(datagram)
                await asyncio.wait({waiting}, timeout=0.2)
        return waiting.result()
    finally:
        waiting.cancel()


async def report_from(peer: WirePeer, host: str) -> tuple[str, int]:
    """The first address report that names this host."""
    while True:
        address = await peer.observed()
        if address[0] == host:
            return address
