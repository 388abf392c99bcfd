"""Direct paths of the agents and connectors in the field through every pair of NATs.

A connector in the field answers probes and sends none, so that only one that takes packets of strangers is reached.
What goes directly is answered through the relay all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from intermediate_server.testing import Application
from intermediate_server.wire.signaling import StartPunching
from tests.e2e.field import register
from tests.e2e.homes import Home, Internet
from tests.e2e.netns import Nat
from tests.integration.packets import Address
from tests.integration.signaling_peer import SignalingPeer, connector_certificate, exchange

# Building the peer may take minutes; each wait has its own, shorter limit.
pytestmark = pytest.mark.timeout(900)

REACHED = {Nat.PUBLIC, Nat.FULL_CONE}


@dataclass(frozen=True, slots=True)
class Pair:
    """An agent and a connector of one service, registered, and the application beside the connector."""

    agent: SignalingPeer
    connector: SignalingPeer
    service: bytes
    backend: Address

    async def try_direct(self) -> str:
        """Let the agent try; returns how that ended."""
        await self.agent.offer(1, self.service)
        assert isinstance(await self.agent.message(), StartPunching)
        step, _ = await self.agent.until("connected", "no_answer", "no_start", "failed")
        return step

    async def exchange(self, payload: bytes) -> bool:
        """A packet to the application and its answer; returns whether the packet went directly."""
        return await exchange(self.agent, self.connector, self.service, payload, self.backend)


@pytest.fixture
async def ends(internet: Internet, quiche_program: Path) -> Ends:
    await internet.start_relay("--client-auth", "optional")
    return Ends(internet, quiche_program, connector_certificate(internet.directory))


@dataclass(frozen=True, slots=True)
class Ends:
    """Brings agents and connectors to the relay."""

    internet: Internet
    program: Path
    connector_flags: Sequence[str]

    async def application(self, home: Home) -> Address:
        """An application at a home, that sends back every datagram."""
        starting = await Application.begin("udp-echo", within=home.host.within)
        return (await self.internet.running.enter_async_context(starting)).address

    async def meet(self, homes: tuple[Home, Home], backend: Address, service: bytes = b"web", *flags: str) -> Pair:
        """An agent, with these flags, at the first home and a connector at the second one."""
        agent = await self.internet.peer(homes[0], self.program, "agent-core", flags)
        connector = await self.internet.peer(homes[1], self.program, "connector", self.connector_flags)
        await register(agent, connector, service)
        await connector.forward(backend)
        return Pair(agent, connector, service, backend)


@pytest.mark.parametrize("sockets", [(), ("--own-sockets",)], ids=["one socket", "own sockets"])
@pytest.mark.parametrize("kind", Nat, ids=lambda kind: str(kind.value))
async def test_ends_of_the_field(ends: Ends, kind: Nat, sockets: tuple[str, ...]) -> None:
    """The agent core has one socket; the app around it probes and connects from others."""
    home = ends.internet.home(kind)
    backend = await ends.application(home)

    async def way(other: Nat) -> tuple[str, bool]:
        pair = await ends.meet((ends.internet.home(other), home), backend, other.value.encode(), *sockets)
        return await pair.try_direct(), await pair.exchange(f"from {other.value}".encode())

    ways = await asyncio.gather(*map(way, Nat))
    expected = ("connected", True) if kind in REACHED else ("no_answer", False)
    assert dict(zip(Nat, ways, strict=True)) == dict.fromkeys(Nat, expected)
    assert ends.internet.metric("ztna_signaling_sessions_total") == len(Nat)
    if kind not in REACHED:
        assert home.router.strangers() >= len(Nat), "probes of every agent came as far as the NAT"


async def test_a_direct_path_that_dies(ends: Ends) -> None:
    homes = ends.internet.home(Nat.FULL_CONE), ends.internet.home(Nat.FULL_CONE)
    backend = await ends.application(homes[1])
    pair = await ends.meet(homes, backend, b"web", "--keepalive-ms", "200", "--keepalive-timeout-ms", "1000")
    assert await pair.try_direct() == "connected"
    assert await pair.exchange(b"directly")
    await pair.connector.until("kept_alive")
    ends.internet.separate(*homes)
    await pair.agent.until("lost")
    assert not await pair.exchange(b"through the relay")
