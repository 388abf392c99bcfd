"""A control plane on an engine without a network: what the tests of sessions and of the drain are built on.

Time is the test's: :meth:`Relay.later` moves the loop's clock, so that no test waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.fake_engine import FakeEngine

from intermediate_server.admin import Status
from intermediate_server.engine import Command, Event, Totals
from intermediate_server.engine.bridge import Bridge
from intermediate_server.pki import identity_of, keys
from intermediate_server.policy import CertificatePolicy, Guard, Policy
from intermediate_server.registry import Registry
from intermediate_server.sessions.dispatcher import Sessions
from intermediate_server.sessions.totals import SessionTotals
from intermediate_server.types import Role
from intermediate_server.wire.datagrams import Register, encode

HOST = "192.0.2.1"


def new_status() -> Status:
    """The state of a server that takes clients."""
    values: dict[str, Any] = {"client_auth": "required", "anonymous_allowed": False, "accepting": True}
    known = {field.name for field in fields(Status)}
    return Status(**{name: value for name, value in values.items() if name in known})


def certificate(*names: str) -> bytes:
    """A client certificate for these DNS names, DER."""
    key = keys.new_key()
    now = keys.utc_now()
    made = keys.sign(
        subject=keys.common_name("peer"),
        public_key=key.public_key(),
        authority=None,
        authority_key=key,
        names=[x509.DNSName(name) for name in names],
        usage=keys.CLIENT_AUTH,
        not_before=now,
        not_after=now + timedelta(days=1),
    )
    return made.public_bytes(Encoding.DER)


def port_of(conn: int) -> int:
    """The port that client ``conn`` connects from."""
    return 1000 + conn


def closed(conn: int, *, cause: str = "application", code: int = 0, reason: str = "") -> Event:
    """The end of a connection."""
    return Event.Closed(conn, cause, code, reason, 1_500_000, Totals(received_datagrams=3))


def told(commands: list[Command]) -> list[tuple[object, ...]]:
    """Commands as plain tuples, without limits, which are other tests' matter."""
    out: list[tuple[object, ...]] = []
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


def ack(conn: int, service: str) -> tuple[object, ...]:
    return ("send", conn, b"\x12\x00" + bytes([len(service)]) + service.encode())


def nack(conn: int, service: str) -> tuple[object, ...]:
    return ("send", conn, b"\x13\x02" + bytes([len(service)]) + service.encode())


@dataclass
class Relay:
    """Sessions on a fake engine."""

    engine: FakeEngine
    bridge: Bridge
    sessions: Sessions
    registry: Registry
    totals: SessionTotals
    skew: float = 0.0

    async def happen(self, *events: Event) -> list[tuple[object, ...]]:
        """Let events happen, in one wake-up; what the engine was told after them, as :func:`told` gives it."""
        before = len(self.engine.batches)
        self.engine.inject(*events)
        await self.settle()
        return self.told_since(before)

    async def later(self, seconds: float) -> list[tuple[object, ...]]:
        """Move the clock; what the engine was told because of it."""
        before = len(self.engine.batches)
        self.skew += seconds
        await self.settle()
        return self.told_since(before)

    def told_since(self, batch: int) -> list[tuple[object, ...]]:
        return told([command for commands in self.engine.batches[batch:] for command in commands])

    async def settle(self) -> None:
        """Let the loop turn until what was due has been done."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def connect(self, conn: int, *names: str, host: str = HOST) -> list[tuple[object, ...]]:
        """A client with a certificate for ``names``, or an anonymous one."""
        certificates = [certificate(*names)] if names else []
        return await self.happen(Event.Connected(conn, None, (host, port_of(conn)), certificates, 5_000))

    async def register(self, conn: int, role: Role, service: str) -> list[tuple[object, ...]]:
        return await self.happen(register(conn, role, service))


def register(conn: int, role: Role, service: str) -> Event:
    """A registration message."""
    return Event.Control(conn, encode(Register(role, service)))


@asynccontextmanager
async def relay(
    policy: Policy | None = None, *, max_services: int = 64, max_in_all: int = 65_536, **options: Any
) -> AsyncIterator[Relay]:
    """Sessions that ask ``policy``, by default the server's own with anonymous peers allowed."""
    engine = FakeEngine()
    bridge = Bridge(engine)
    registry = Registry(max_services_per_connection=max_services, max_services=max_in_all)
    totals = SessionTotals()
    guard = Guard(policy or CertificatePolicy(anonymous=True))
    loop = asyncio.get_running_loop()
    real_time = loop.time
    async with asyncio.TaskGroup() as tasks:
        sessions = Sessions(
            submit=bridge.submit,
            registry=registry,
            guard=guard,
            identify=identity_of,
            totals=totals,
            spawn=tasks.create_task,
            **options,
        )
        made = Relay(engine, bridge, sessions, registry, totals)
        loop.time = lambda: real_time() + made.skew  # type: ignore[method-assign]  # the loop asks itself for the time
        bridge.start(sessions.dispatch)
        try:
            yield made
        finally:
            sessions.stop()
            bridge.stop()
            await guard.aclose()
            loop.time = real_time  # type: ignore[method-assign]
            engine.close(0)
    assert bridge.dispatch_errors == 0
