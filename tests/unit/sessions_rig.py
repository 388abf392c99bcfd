"""Sessions on an engine without a network: what the tests of sessions, of grants and of the drain are built on.

Time is the test's: :meth:`Rig.later` moves the clocks, so that no test waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.fake_engine import FakeEngine

from intermediate_server.engine import Command, Event, Totals
from intermediate_server.engine.bridge import Bridge
from intermediate_server.pki import identity_of, keys
from intermediate_server.policy import CertificatePolicy, Guard, Policy
from intermediate_server.registry import Registry
from intermediate_server.sessions.dispatcher import Sessions
from intermediate_server.sessions.totals import SessionTotals
from intermediate_server.types import Role
from intermediate_server.wire import close_codes
from intermediate_server.wire.datagrams import Register, encode

HOST = "192.0.2.1"
Told = tuple[object, ...]
"""A command to the engine as :func:`told` gives it."""


def certificate(
    *names: str,
    lasts: timedelta = timedelta(days=1),
    begins: timedelta = timedelta(days=-1),
    key: keys.PrivateKey | None = None,
) -> bytes:
    """A client certificate for these DNS names, DER, that begins and lasts so long from now."""
    key = key or keys.new_key()
    now = keys.utc_now()
    made = keys.sign(
        subject=keys.common_name("peer"),
        public_key=key.public_key(),
        authority=None,
        authority_key=key,
        names=[x509.DNSName(name) for name in names],
        usage=keys.CLIENT_AUTH,
        not_before=now + begins,
        not_after=now + lasts,
    )
    return made.public_bytes(Encoding.DER)


def port_of(conn: int) -> int:
    """The port that client ``conn`` connects from."""
    return 1000 + conn


def connected(conn: int, *certificates: bytes, host: str = HOST) -> Event:
    """A completed handshake, with the client's chain."""
    return Event.Connected(conn, None, (host, port_of(conn)), list(certificates), 5_000)


def register(conn: int, role: Role, service: str) -> Event:
    """A registration message."""
    return Event.Control(conn, encode(Register(role, service)))


def closed(conn: int, *, cause: str = "application", code: int = 0, reason: str = "") -> Event:
    """The end of a connection."""
    return Event.Closed(conn, cause, code, reason, 1_500_000, Totals(received_datagrams=3))


def told(commands: list[Command]) -> list[Told]:
    """Commands as plain tuples, without limits, which are other tests' matter."""
    out: list[Told] = []
    for command in commands:
        match command:
            case Command.SetService(service, targets):
                out.append(("service", service.decode(), [target.conn for target in targets]))
            case Command.SetAgent(conn, services, _):
                out.append(("agent", conn, [service.decode() for service in services]))
            case Command.SendDatagram(conn, data):
                out.append(("send", conn, data))
            case Command.Close(conn, code, reason):
                out.append(("close", conn, code, reason))
            case Command.SetAccepting(accepting):
                out.append(("accepting", accepting))
    return out


def ack(conn: int, service: str) -> Told:
    return ("send", conn, b"\x12\x00" + bytes([len(service)]) + service.encode())


def nack(conn: int, service: str) -> Told:
    return ("send", conn, b"\x13\x02" + bytes([len(service)]) + service.encode())


def revoked(conn: int) -> Told:
    """The end of a connection to which no grant is left."""
    return ("close", conn, close_codes.ACCESS_REVOKED, "access revoked")


class MovedTime:
    """Seconds by which a test has moved the clocks of the loop and of the day."""

    def __init__(self) -> None:
        self.skew = 0.0

    def unix(self) -> float:
        """The time of day, as Unix time."""
        return time.time() + self.skew

    def now(self) -> datetime:
        """The time of day."""
        return datetime.fromtimestamp(self.unix(), UTC)


@contextmanager
def moved_time(moved: MovedTime | None = None) -> Iterator[MovedTime]:
    """Lets a test move the clock of the running loop."""
    loop = asyncio.get_running_loop()
    real, moved = loop.time, moved or MovedTime()
    loop.time = lambda: real() + moved.skew  # type: ignore[method-assign]  # the loop asks itself for the time
    try:
        yield moved
    finally:
        loop.time = real  # type: ignore[method-assign]


@dataclass
class Rig:
    """Sessions on a fake engine."""

    engine: FakeEngine
    bridge: Bridge
    sessions: Sessions
    registry: Registry
    totals: SessionTotals
    clocks: MovedTime

    async def happen(self, *events: Event) -> list[Told]:
        """Let events happen, in one wake-up; what the engine was told after them, as :func:`told` gives it."""
        before = len(self.engine.batches)
        self.engine.inject(*events)
        await self.settle()
        return self.told_since(before)

    async def later(self, seconds: float) -> list[Told]:
        """Move the clocks; what the engine was told because of it."""
        before = len(self.engine.batches)
        self.clocks.skew += seconds
        await self.settle()
        return self.told_since(before)

    def told_since(self, batch: int) -> list[Told]:
        return told([command for commands in self.engine.batches[batch:] for command in commands])

    async def settle(self) -> None:
        """Let the loop turn until what was due has been done."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def connect(self, conn: int, *names: str, host: str = HOST) -> list[Told]:
        """A client with a certificate for ``names``, or an anonymous one."""
        certificates = [certificate(*names)] if names else []
        return await self.happen(connected(conn, *certificates, host=host))

    async def register(self, conn: int, role: Role, service: str) -> list[Told]:
        return await self.happen(register(conn, role, service))


@asynccontextmanager
async def rig(
    policy: Policy | None = None,
    *,
    clocks: MovedTime | None = None,
    max_services: int = 64,
    max_in_all: int = 65_536,
    **options: Any,
) -> AsyncIterator[Rig]:
    """Sessions that ask ``policy``, by default the server's own with anonymous peers allowed.

    ``options`` are those of :class:`Sessions`; ``clocks`` move with the time of the rig.
    """
    engine = FakeEngine()
    bridge = Bridge(engine)
    registry = Registry(max_services_per_connection=max_services, max_services=max_in_all)
    totals = SessionTotals()
    guard = Guard(policy or CertificatePolicy(anonymous=True))
    with moved_time(clocks) as moved:
        async with asyncio.TaskGroup() as tasks:
            sessions = Sessions(
                submit=bridge.submit,
                registry=registry,
                guard=guard,
                identify=identity_of,
                totals=totals,
                spawn=tasks.create_task,
                **{"clock": moved.unix} | options,
            )
            bridge.start(sessions.dispatch)
            try:
                yield Rig(engine, bridge, sessions, registry, totals, moved)
            finally:
                sessions.stop()
                bridge.stop()
                await guard.aclose()
                engine.close(0)
    assert bridge.dispatch_errors == 0
