"""A server as it runs during a migration, and clients in the field that come to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.packets import Address, read_udp, udp_packet
from tests.integration.peers import (
    AGENT,
    CONNECTOR,
    PATIENCE,
    Profile,
    QuichePeer,
    ack,
    to_service,
)

if TYPE_CHECKING:
    from intermediate_server.testing import Application
    from tests.integration.conftest import Server

    StartServer = Callable[..., Awaitable[Server]]
    StartApplication = Callable[[str], Awaitable[Application]]

SERVICE = b"hj-6e7c"
INNER = ("100.64.0.1", 5_000)
"""What every agent of the field uses, so that it collides."""
APPLICATION = ("10.0.0.5", 53)
DUMMY = "192.0.0.8"


@dataclass(frozen=True, slots=True)
class Field:
    """A server as it runs during a migration, and the clients that come to it."""

    program: Path
    server: Server

    def start(self, profile: Profile) -> contextlib.AbstractAsyncContextManager[QuichePeer]:
        """A client of ``profile`` that trusts the server's CA."""
        return QuichePeer.start(self.program, profile, self.server.address, ca_file=self.server.ca_file)

    @contextlib.asynccontextmanager
    async def join(self, profile: Profile, kind: int, service: bytes = SERVICE) -> AsyncIterator[QuichePeer]:
        """A client that has its address report and its registration."""
        async with self.start(profile) as peer:
            await peer.connected()
            await peer.observed()
            assert await peer.register(kind, service) == ack(service)
            yield peer

    @contextlib.asynccontextmanager
    async def pair(self, profile: Profile = "agent-core") -> AsyncIterator[tuple[QuichePeer, QuichePeer]]:
        """An agent of ``profile`` and a connector of the same service."""
        async with self.join("connector", CONNECTOR) as connector, self.join(profile, AGENT) as agent:
            yield agent, connector


async def exchange(agent: QuichePeer, payload: bytes, backend: Address) -> None:
    """One UDP packet to the application of the connector, and its answer back with the application's own address."""
    await agent.send(to_service(SERVICE, udp_packet(INNER, APPLICATION, payload)))
    answer = read_udp(await agent.packet())
    assert (answer.source, answer.destination, answer.payload) == (backend, INNER, payload)


async def retired(peer: QuichePeer, count: int) -> None:
    """Wait until the server has retired ``count`` connection ids of the client."""
    with steps_until(PATIENCE) as check:
        while (await peer.stats())["retired_scids"] < count:
            check()
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def steps_until(limit: float) -> Iterator[Callable[[], None]]:
    """A check to call in a loop; it fails the test once ``limit`` seconds have passed."""
    end = asyncio.get_running_loop().time() + limit

    def check() -> None:
        assert asyncio.get_running_loop().time() < end, f"not reached within {limit:.0f} s"

    yield check


@pytest.fixture
async def field(quiche_program: Path, start_server: StartServer) -> Field:
    return Field(program=quiche_program, server=await start_server("--client-auth", "optional"))


@pytest.fixture
async def backend(start_application: StartApplication) -> Address:
    """An application beside the connector, that sends back every datagram."""
    return (await start_application("udp-echo")).address
