"""Opening connections: one engine thread carries any number of them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from intermediate_server.client.connection import Connection
from intermediate_server.client.dial import race
from intermediate_server.client.hosts import look_up_all
from intermediate_server.client.options import ConnectOptions, by_keyword
from intermediate_server.client.reasons import CONNECTION_REFUSED, Shown, of_failure
from intermediate_server.client.tunnel import Tunnel
from intermediate_server.engine import ClientTls, Command, Engine, Event
from intermediate_server.engine.bridge import Bridge
from intermediate_server.errors import CertificateError, ConnectError, TunnelError
from intermediate_server.pki.keys import utc_now
from intermediate_server.types import Address

CLOSE_TIMEOUT_MS = 1_000
"""Longest time to get closing packets out when the engine stops."""

LEFT = "the client engine was left before the connection was made"


class ClientEngine:
    """An engine for client connections. Use as ``async with``; its end closes all connections and tunnels."""

    def __init__(self) -> None:
        self._engine = Engine()
        self._bridge = Bridge(self._engine)
        self._requests = itertools.count(1)
        self._opening: dict[int, asyncio.Future[Connection | bytes | Event.ConnectFailed]] = {}
        self._connections: dict[int, Connection] = {}
        self._tunnel_numbers = itertools.count(1)
        self._opening_tunnels: dict[int, asyncio.Future[Tunnel]] = {}
        self._tunnels: dict[int, Tunnel] = {}
        self._left = False

    async def __aenter__(self) -> Self:
        self._bridge.start(self._dispatch)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left = True
        self._bridge.finish()
        await asyncio.to_thread(self._engine.close, CLOSE_TIMEOUT_MS)
        self._bridge.drain_now()
        self._bridge.stop()
        for opening in self._opening.values():
            if not opening.done():
                opening.set_exception(ConnectError(LEFT))

    @property
    def turning(self) -> bool:
        """Whether its thread and the loop both go on."""
        return self._bridge.turning

    @by_keyword(ConnectOptions)
    async def connect(self, options: ConnectOptions) -> Connection:
        """Connect to ``host:port``; the first address to complete the handshake wins.

        Takes what :class:`ConnectOptions` has, the server first and the rest by keyword. Raises ``ConnectError`` when
        the name does not resolve, a file cannot be used or the handshake fails at every address.
        """
        return await self.open(options)

    async def open(
        self, options: ConnectOptions, *, at: tuple[str, int] | None = None, tls: ClientTls | None = None
    ) -> Connection:
        """As :meth:`connect`; ``at`` is the one address to try, and ``tls`` is used in place of the files."""
        options.check_dates(utc_now())
        places = options.places() if at is None else [at]
        used, shown = tls or _tls(options), options.shown

        async def dial(remote: tuple[str, int]) -> Connection:
            made = await self._request(
                lambda request: Command.Connect(request, options.config(remote, used, shown)), shown
            )
            assert isinstance(made, Connection)  # noqa: S101  the answer to this command
            return made

        return await race(dial, await look_up_all(places))

    async def ask(self, options: ConnectOptions, data: bytes) -> bytes:
        """The answer to one request over ``ztna-join/1``, of at most 16 KiB; the first address to answer wins.

        Several addresses may get the request. Raises ``ConnectError``, as :meth:`connect`.
        """
        tls, shown = _tls(options), replace(options.shown, joining=True)

        async def ask_one(remote: tuple[str, int]) -> bytes:
            made = await self._request(
                lambda request: Command.Ask(request, options.config(remote, tls, shown), data), shown
            )
            assert isinstance(made, bytes)  # noqa: S101  the answer to this command
            return made

        return await race(ask_one, await look_up_all(options.places()))

    async def _request(self, command: Callable[[int], Command], shown: Shown) -> Connection | bytes:
        """The outcome of the command made from its number; a cancellation gives the attempt up."""
        if self._left:
            raise ConnectError(LEFT)
        request = next(self._requests)
        opening: asyncio.Future[Connection | bytes | Event.ConnectFailed] = asyncio.get_running_loop().create_future()
        self._opening[request] = opening
        self._bridge.submit(command(request))
        try:
            answer = await opening
        except asyncio.CancelledError:
            if opening.cancelled():
                self._bridge.submit(Command.CancelConnect(request))
            elif isinstance(connection := opening.result(), Connection):
                connection.abandon()
            raise
        if not isinstance(answer, Event.ConnectFailed):
            return answer
        unavailable = answer.cause == "peer" and answer.code == CONNECTION_REFUSED
        raise ConnectError(of_failure(answer, shown), cause="unavailable" if unavailable else answer.cause)

    async def open_tunnel(self, command: Callable[[int], Command]) -> Tunnel:
        """Open a tunnel with the ``Command.Open...`` made by ``command`` from its number. Raises ``TunnelError``."""
        number = next(self._tunnel_numbers)
        opening: asyncio.Future[Tunnel] = asyncio.get_running_loop().create_future()
        self._opening_tunnels[number] = opening
        self._bridge.submit(command(number))
        return await opening

    async def until_failed(self) -> None:
        """Wait until the engine fails; raises ``TunnelError`` then."""
        raise TunnelError(f"the engine cannot go on: {await self._bridge.wait_failed()}")

    def _dispatch_tunnel(self, event: Event.TunnelOpened | Event.TunnelFailed | Event.TunnelNotice) -> None:
        if isinstance(event, Event.TunnelNotice):
            if (noticed := self._tunnels.get(event.tunnel)) is not None:
                noticed.notice(event)
            return
        opening = self._opening_tunnels.pop(event.tunnel, None)
        match event:
            case Event.TunnelOpened(tunnel=number, addresses=addresses) if opening is not None:
                tunnel = Tunnel(number, addresses, self._bridge.submit, self._engine.tunnel_counters)
                self._tunnels[number] = tunnel
                if opening.cancelled():
                    tunnel.close()
                else:
                    opening.set_result(tunnel)
            case Event.TunnelFailed(tunnel=number, reason=reason):
                known = self._tunnels.get(number)
                if opening is not None and not opening.done():
                    opening.set_exception(TunnelError(reason))
                elif known is not None and not known.failed.done():
                    known.failed.set_result(reason)

    def _settle(self, request: int, outcome: bytes | Event.ConnectFailed) -> None:
        opening = self._opening.pop(request, None)
        if opening is not None and not opening.done():
            opening.set_result(outcome)

    def _dispatch(self, event: Event) -> None:
        match event:
            case Event.TunnelOpened() | Event.TunnelFailed() | Event.TunnelNotice():
                self._dispatch_tunnel(event)
            case Event.Connected(conn=conn, request=request, remote=remote, certificates=certificates):
                opening = self._opening.pop(request or 0, None)
                if opening is None or opening.done():
                    self._bridge.submit(Command.Close(conn, 0, ""))
                    return
                try:
                    connection = Connection(conn, Address.of(remote), self._bridge.submit)
                except BaseException as error:
                    # No owner is left to close it.
                    self._bridge.submit(Command.Close(conn, 0, "internal error"))
                    opening.set_exception(ConnectError(f"the connection could not be taken over: {error!r}"))
                    raise
                connection.certificates = certificates
                self._connections[conn] = connection
                opening.set_result(connection)
            case Event.ConnectFailed(request=request):
                self._settle(request, event)
            case Event.Answered(request=request, data=data):
                self._settle(request, data)
            case (
                Event.Datagrams(conn=conn)
                | Event.ObservedAddress(conn=conn)
                | Event.Inspected(conn=conn)
                | Event.DatagramLimit(conn=conn)
                | Event.Closed(conn=conn)
            ):
                known = self._connections.get(conn)
                if known is not None:
                    known.handle(event)
                    if known.closed is not None:
                        del self._connections[conn]


def _tls(options: ConnectOptions) -> ClientTls:
    try:
        return options.tls()
    except CertificateError as error:
        raise ConnectError(f"cannot use the certificates: {error}") from error


@asynccontextmanager
async def connect(
    server: str | tuple[str, int] | None = None,
    *,
    profile: str | Path | None = None,
    ca_file: str | Path | None = None,
    cert_file: str | Path | None = None,
    key_file: str | Path | None = None,
    server_name: str | None = None,
    verify: bool = True,
) -> AsyncIterator[Connection]:
    """One connection with an engine of its own, closed at the end; see :meth:`ClientEngine.connect`."""
    async with ClientEngine() as engine:
        connection = await engine.connect(
            server,
            profile=profile,
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            server_name=server_name,
            verify=verify,
        )
        try:
            yield connection
        finally:
            await connection.close()
