"""Clients of three unrelated QUIC stacks behind one face: our own, aioquic, and quiche as the field sets it up."""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from typing_extensions import override

from intermediate_server import types
from intermediate_server.client import ClientEngine, Connection
from intermediate_server.errors import ConnectionClosed, RegistrationError
from intermediate_server.testing import Relay
from intermediate_server.types import Role
from intermediate_server.wire.datagrams import ObservedAddress, encode
from tests.integration.aioquic_peer import AioquicPeer
from tests.integration.packets import Address
from tests.integration.peers import AGENT, PATIENCE, Ended, Profile, QuichePeer, WirePeer, ack, nack

Certificate = tuple[Path | str, Path | str]


class OwnPeer(WirePeer):
    """A connection of the client library."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection
        if connection.observed_address is not None:
            self._observe(connection.observed_address)
        connection.on_observed = self._observe
        self._reader = asyncio.ensure_future(self._read())

    @classmethod
    @asynccontextmanager
    async def start(
        cls, engine: ClientEngine, server: Relay, *, certificate: Certificate | None = None, alpn: str = "ztna-v1"
    ) -> AsyncIterator[OwnPeer]:
        """Connect, with the handshake done when the block is entered; closes at its end."""
        cert_file, key_file = certificate or (None, None)
        connection = await engine.connect(
            server.address,
            ca_file=server.ca_file,
            server_name="ztna-server",
            cert_file=cert_file,
            key_file=key_file,
            alpn=alpn,
        )
        peer = cls(connection)
        try:
            yield peer
        finally:
            await connection.close()
            await peer._reader

    @override
    async def send(self, data: bytes) -> None:
        self.connection.send_raw(data)

    @override
    async def send_all(self, datagrams: Sequence[bytes]) -> None:
        self.connection.send_many(list(datagrams))

    @override
    async def register(self, kind: int, service: bytes) -> bytes:
        try:
            await self.connection.register(Role.AGENT if kind == AGENT else Role.CONNECTOR, service.decode())
        except RegistrationError as error:
            assert error.answered, error
            status = re.search(r"refused with status (\d+)", str(error))
            assert status is not None
            return nack(int(status[1]), service)
        return ack(service)

    @override
    async def port(self) -> int:
        return (await self.connection.wait_observed_frame()).port

    @override
    async def rebind(self) -> Address:
        before = await self.connection.wait_observed_frame()
        self.connection.rebind()
        await self.connection.inspect()
        after = await self.connection.wait_observed_frame(other_than=before)
        return str(after.host), after.port

    @override
    async def largest(self) -> int:
        return await self.connection.wait_datagram_limit()

    @override
    async def ended(self) -> Ended:
        async with asyncio.timeout(PATIENCE):
            closed = await self.connection.wait_closed()
        return Ended(closed.cause == "application", closed.code, closed.reason)

    def _observe(self, address: types.Address) -> None:
        self.inbox.put(encode(ObservedAddress(address)))

    async def _read(self) -> None:
        try:
            while True:
                self.inbox.packets.put_nowait(await self.connection.receive())
        except ConnectionClosed as error:
            self._gone.set_result(str(error))


class Stack(ABC):
    """How a client of one stack is had."""

    @abstractmethod
    def start(self, server: Relay, *, certificate: Certificate | None = None) -> AbstractAsyncContextManager[WirePeer]:
        """A client that trusts the server's CA, with its handshake complete."""

    def for_connectors(self) -> Stack:
        """The client that is a connector where this one is an agent."""
        return self

    @asynccontextmanager
    async def join(self, server: Relay, kind: int, service: bytes) -> AsyncIterator[WirePeer]:
        """A client that has its address report and its registration."""
        async with self.start(server) as peer:
            await peer.observed()
            assert await peer.register(kind, service) == ack(service)
            yield peer


@dataclass(frozen=True, slots=True)
class Own(Stack):
    engine: ClientEngine

    @override
    def start(self, server: Relay, *, certificate: Certificate | None = None) -> AbstractAsyncContextManager[WirePeer]:
        return OwnPeer.start(self.engine, server, certificate=certificate)


class Aioquic(Stack):
    @override
    def start(self, server: Relay, *, certificate: Certificate | None = None) -> AbstractAsyncContextManager[WirePeer]:
        return AioquicPeer.start(server.address, ca_file=server.ca_file, certificate=certificate)


@dataclass(frozen=True, slots=True)
class Quiche(Stack):
    program: Path
    profile: Profile

    @override
    def for_connectors(self) -> Stack:
        return replace(self, profile="connector")

    @override
    @asynccontextmanager
    async def start(self, server: Relay, *, certificate: Certificate | None = None) -> AsyncIterator[WirePeer]:
        async with QuichePeer.start(
            self.program, self.profile, server.address, ca_file=server.ca_file, certificate=certificate
        ) as peer:
            await peer.connected()
            yield peer
