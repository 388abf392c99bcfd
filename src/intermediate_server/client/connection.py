"""One client connection: observed address, registration, packets."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from intermediate_server.engine import Command, Event, Totals
from intermediate_server.errors import ConnectionClosed, RegistrationError
from intermediate_server.types import Address, Role
from intermediate_server.wire.datagrams import (
    Ack,
    Nack,
    ObservedAddress,
    Register,
    ServiceRouted,
    decode_server,
    encode,
)

T = TypeVar("T")

REGISTRATION_WAITS = (2.0, 4.0, 4.0)
"""Seconds to wait for the answer to each try; the clients in the field do the same."""

MAX_RECEIVED = 4096
"""Packets kept for :meth:`Connection.receive`; with more, the oldest goes."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The end of a connection."""

    cause: str
    """local, application, peer, transport, idle_timeout, reset or panic."""
    code: int
    """The code of the CONNECTION_CLOSE frame; 0 where there was none."""
    reason: str
    totals: Totals | None = None

    def __str__(self) -> str:
        return f"closed ({self.cause}, code {self.code}): {self.reason or 'no reason given'}"


class Connection:
    """A connection to a relay. Made by :func:`connect` or ``ClientEngine.connect``; belongs to one event loop."""

    def __init__(self, conn: int, remote: Address, submit: Callable[[Command], None]) -> None:
        self.conn = conn
        self.remote = remote
        """The server's address."""
        self.certificates: Sequence[bytes] = ()
        """The server's chain, DER, leaf first."""
        self.observed_address: Address | None = None
        """Our own address as last reported in a ztna-v1 message."""
        self.observed_address_frame: Address | None = None
        """Our own address as last reported in a standard OBSERVED_ADDRESS frame."""
        self.datagram_limit = 0
        """Largest DATAGRAM payload that can be sent now, in bytes; 0 until it is known."""
        self.on_observed: Callable[[Address], None] | None = None
        """Called with each address reported in a ztna-v1 message."""
        self.dropped = 0
        """Packets dropped because :meth:`receive` was not called in time."""
        self.closed: Closed | None = None
        """Its end; None while it lives."""
        self.let_in = False
        """Whether the relay has sent anything; it checks our certificate only after the handshake."""
        self._submit = submit
        self._received: deque[bytes] = deque(maxlen=MAX_RECEIVED)
        self._answers: dict[str, asyncio.Future[Ack | Nack]] = {}
        self._inspections: list[asyncio.Future[Event.Inspected]] = []
        self._wakers: set[asyncio.Future[None]] = set()

    async def wait_observed(self, *, other_than: Address | None = None) -> Address:
        """Wait for the server to report our address, or one that differs from ``other_than``."""
        while self.observed_address is None or self.observed_address == other_than:
            await self._next_change()
        return self.observed_address

    async def wait_observed_frame(self, *, other_than: Address | None = None) -> Address:
        """As :meth:`wait_observed`, for the standard frame."""
        while self.observed_address_frame is None or self.observed_address_frame == other_than:
            await self._next_change()
        return self.observed_address_frame

    async def wait_datagram_limit(self, *, other_than: int = 0) -> int:
        """The largest DATAGRAM payload, once it is known and differs from ``other_than``."""
        while self.datagram_limit in (0, other_than):
            await self._next_change()
        return self.datagram_limit

    async def wait_let_in(self) -> None:
        """Wait until the relay serves us. Raises ``ConnectionClosed`` when it does not."""
        while not self.let_in:
            await self._next_change()

    async def register(self, role: Role, service: str) -> None:
        """Register, trying three times as the protocol asks.

        Raises ``RegistrationError`` when the server refuses or stays silent, ``ConnectionClosed`` when the connection
        ends.
        """
        message = encode(Register(role, service))
        for wait in REGISTRATION_WAITS:
            answer = self._answers.setdefault(service, asyncio.get_running_loop().create_future())
            self.send_raw(message)
            await asyncio.wait({answer}, timeout=wait)
            if not answer.done():
                continue
            self._answers.pop(service, None)
            result = answer.result()
            if isinstance(result, Nack):
                raise RegistrationError(
                    f"{role.value} for service {service!r} refused with status {result.status}:"
                    " the server's log says why",
                    answered=True,
                )
            return
        self._answers.pop(service, None)
        raise RegistrationError(f"no answer to the registration as {role.value} for service {service!r}")

    def send(self, packet: bytes, *, service: str | None = None) -> None:
        """Send an IP packet to ``service``, or to the first registered one. Unreliable, as IP is."""
        self.send_raw(packet if service is None else encode(ServiceRouted(service, packet)))

    def send_raw(self, datagram: bytes) -> None:
        """Send one DATAGRAM as it is. Raises ``ConnectionClosed``."""
        self._check()
        self._submit(Command.SendDatagram(self.conn, datagram))

    def send_many(self, datagrams: list[bytes]) -> None:
        """Send DATAGRAMs as they are, in this order. Raises ``ConnectionClosed``."""
        self._check()
        self._submit(Command.SendDatagrams(self.conn, datagrams))

    async def receive(self) -> bytes:
        """The next packet. Raises ``ConnectionClosed`` when none is left and none will come."""
        while not self._received:
            await self._next_change()
        return self._received.popleft()

    async def inspect(self) -> Event.Inspected:
        """Round-trip time, MTU, loss and totals now. Raises ``ConnectionClosed``."""
        self._check()
        inspected: asyncio.Future[Event.Inspected] = asyncio.get_running_loop().create_future()
        self._inspections.append(inspected)
        self._submit(Command.Inspect(self.conn))
        return await inspected

    def rebind(self) -> None:
        """Move to another local port, as after a NAT rebinding (RFC 9000 section 9). Raises ``ConnectionClosed``."""
        self._check()
        self._submit(Command.Rebind(self.conn))

    async def close(self, code: int = 0, reason: str = "") -> Closed:
        """Close, and wait for the end. Safe to repeat."""
        if self.closed is None:
            self._submit(Command.Close(self.conn, code, reason))
        return await self.wait_closed()

    def abandon(self, reason: str = "") -> None:
        """Close without waiting for the end."""
        if self.closed is None:
            self._submit(Command.Close(self.conn, 0, reason))

    async def wait_closed(self) -> Closed:
        """Wait until the connection has ended."""
        while self.closed is None:
            await self._wait()
        return self.closed

    def handle(self, event: Event) -> None:
        """Take one event of this connection; called by the engine's owner."""
        match event:
            case Event.Datagrams(data=data):
                self.let_in = True
                for datagram in data:
                    self._take(datagram)
            case Event.ObservedAddress(address=pair):
                self.observed_address_frame = Address.of(pair)
            case Event.DatagramLimit(max_datagram=limit):
                self.datagram_limit = limit
            case Event.Inspected():
                if self._inspections:
                    _resolve(self._inspections.pop(0), event)
            case Event.Closed():
                self._end(Closed(event.cause, event.code, event.reason, event.totals))
        self._wake()

    def _end(self, closed: Closed) -> None:
        self.closed = closed
        error = ConnectionClosed(str(closed))
        for answer in self._answers.values():
            _reject(answer, error)
        for inspected in self._inspections:
            _reject(inspected, error)

    def _take(self, datagram: bytes) -> None:
        match decode_server(datagram):
            case ObservedAddress(address):
                self.observed_address = address
                if self.on_observed is not None:
                    self.on_observed(address)
            case (Ack() | Nack()) as answer:
                waiting = self._answers.get(answer.service)
                if waiting is not None:
                    _resolve(waiting, answer)
            case packet if isinstance(packet, bytes):
                self.dropped += len(self._received) == MAX_RECEIVED
                self._received.append(packet)

    def _check(self) -> None:
        if self.closed is not None:
            raise ConnectionClosed(str(self.closed))

    async def _next_change(self) -> None:
        self._check()
        await self._wait()

    async def _wait(self) -> None:
        waker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wakers.add(waker)
        try:
            await waker
        finally:
            self._wakers.discard(waker)

    def _wake(self) -> None:
        for waker in self._wakers:
            _resolve(waker, None)


def _resolve(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _reject(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        # The waiting task may be gone; that is no unhandled error.
        future.exception()
