"""Tunnels for tests: a client engine that opens them, and applications for them to reach."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from intermediate_server.client import ClientEngine, Connection
from intermediate_server.client.service_address import service_addresses
from intermediate_server.engine import Backend, Command, Event, Forward
from intermediate_server.testing.programs import PATIENCE
from intermediate_server.types import Role
from tests.integration.server import Server

SOURCE_V4, SOURCE_V6 = "100.64.0.1", "fd64:7a74:6e61::1"


async def until(true: Callable[[], bool]) -> None:
    """Until ``true()`` is: for what changes without an event."""
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class TunnelEngine(ClientEngine):
    """A client engine with tunnels."""

    def __init__(self) -> None:
        super().__init__()
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[list[tuple[str, int]]]] = {}
        self.failed: dict[int, str] = {}
        self.limits: dict[int, int] = {}
        """Largest DATAGRAM of each connection, as last reported."""
        self.connectors: dict[tuple[int, str], bool] = {}
        """Whether a connector answers for each service of an agent's tunnel."""
        self.notices: list[Event.TunnelNotice] = []

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self

    async def open_forwards(self, forwards: Sequence[Forward]) -> tuple[int, list[tuple[str, int]]]:
        tunnel = next(self._ids)
        return tunnel, await self._open(tunnel, Command.OpenForwards(tunnel, list(forwards), SOURCE_V4, SOURCE_V6))

    async def open_backends(self, services: Sequence[Backend], *, tunnel: int | None = None) -> int:
        tunnel = next(self._ids) if tunnel is None else tunnel
        await self._open(tunnel, Command.OpenBackends(tunnel, list(services)))
        return tunnel

    async def open_tun(self, command: Command.OpenTun) -> None:
        await self._open(command.tunnel, command)

    async def attach(self, tunnel: int, connection: Connection, services: Sequence[str] = ()) -> None:
        """Attach and wait until it is done, and until it is known which services have a connector."""
        for service in services:
            self.connectors.pop((tunnel, service), None)
        self.submit(
            Command.SetTunnelServices(tunnel, [service.encode() for service in services]),
            Command.AttachTunnel(tunnel, connection.conn),
        )
        await connection.inspect()
        await until(lambda: all((tunnel, service) in self.connectors for service in services))

    def submit(self, *commands: Command) -> None:
        self._bridge.submit(*commands)

    def counters(self, tunnel: int) -> dict[str, int]:
        return self._engine.tunnel_counters(tunnel)

    async def wait_counter(self, tunnel: int, name: str, value: int) -> None:
        """Until the counter has at least this value."""
        await until(lambda: self.counters(tunnel).get(name, 0) >= value)

    async def _open(self, tunnel: int, command: Command) -> list[tuple[str, int]]:
        answer: asyncio.Future[list[tuple[str, int]]] = asyncio.get_running_loop().create_future()
        self._answers[tunnel] = answer
        self.submit(command)
        async with asyncio.timeout(PATIENCE):
            return await answer

    def _dispatch(self, event: Event) -> None:
        match event:
            case Event.TunnelOpened(tunnel=tunnel, addresses=addresses):
                answer = self._answers.pop(tunnel, None)
                if answer is not None:
                    answer.set_result(addresses)
            case Event.TunnelFailed(tunnel=tunnel, reason=reason):
                self.failed[tunnel] = reason
                answer = self._answers.pop(tunnel, None)
                if answer is not None:
                    answer.set_exception(RuntimeError(reason))
            case Event.TunnelNotice(tunnel=tunnel, subject=subject, service=service, error=error):
                self.notices.append(event)
                if subject == "connector":
                    self.connectors[tunnel, service.decode()] = error is None
            case Event.DatagramLimit(conn=conn, max_datagram=limit):
                self.limits[conn] = limit
            case _:
                super()._dispatch(event)


@dataclass
class Application:
    """A TCP application on loopback that counts who is connected."""

    address: tuple[str, int] = ("", 0)
    connections: int = 0
    ended: list[str] = field(default_factory=list)
    """How each connection ended: ``eof`` or ``reset``."""


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def application(handle: Handler, host: str = "127.0.0.1") -> AsyncIterator[Application]:
    """Runs ``handle(reader, writer)`` for every connection."""
    state = Application()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        state.connections += 1
        try:
            await handle(reader, writer)
            state.ended.append("eof")
        except ConnectionError:
            state.ended.append("reset")
        finally:
            writer.close()

    server = await asyncio.start_server(serve, host, 0, limit=2**20)
    state.address = server.sockets[0].getsockname()[:2]
    async with server:
        yield state


async def connected(
    engine: TunnelEngine, server: Server, role: Role, *services: str, certificate: tuple[Path, Path] | None = None
) -> Connection:
    cert_file, key_file = certificate or (None, None)
    connection = await engine.connect(
        server.address, ca_file=server.ca_file, cert_file=cert_file, key_file=key_file, server_name="ztna-server"
    )
    for service in services:
        await connection.register(role, service)
    return connection


def tcp_backend(*addresses: tuple[str, int], service: str = "web") -> Backend:
    return backend(*addresses, service=service, protocol="tcp")


def backend(*addresses: tuple[str, int], service: str, protocol: str) -> Backend:
    named = [str(each) for each in service_addresses(service)]
    return Backend(service=service.encode(), protocol=protocol, addresses=addresses, service_addresses=named)


def tcp_forward(*, service: str = "web", to: str | None = None, port: int = 80) -> Forward:
    """A local port whose packets go to the service, or with ``to`` to the address of another one."""
    destination = str(service_addresses(to or service)[0])
    return Forward(protocol="tcp", bind=("127.0.0.1", 0), service=service.encode(), destination=(destination, port))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


async def through(tunnels: TunnelEngine, server: Server, app: Application) -> tuple[int, int, tuple[str, int]]:
    """A forward to an application; the tunnels of connector and agent, and the local port."""
    backends = await tunnels.open_backends([tcp_backend(app.address)])
    forwards, [port] = await tunnels.open_forwards([tcp_forward()])
    await tunnels.attach(backends, await connected(tunnels, server, Role.CONNECTOR, "web"))
    await tunnels.attach(forwards, await connected(tunnels, server, Role.AGENT, "web"), ["web"])
    return backends, forwards, port


async def exchange(port: tuple[str, int], data: bytes) -> bytes:
    """What comes back for ``data`` and the end of it."""
    reader, writer = await asyncio.open_connection(*port)
    try:
        writer.write(data)
        with suppress(OSError):
            # A reset that was here first makes it fail, and the read tells which way the connection ended.
            writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
