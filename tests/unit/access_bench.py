"""Sessions on an engine that only counts, with policies that answer as a test says."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from typing_extensions import override

from intermediate_server.access.admission import Admission
from intermediate_server.access.quotas import Quotas
from intermediate_server.engine import Command, Event
from intermediate_server.errors import CertificateError
from intermediate_server.pki import CertificateId
from intermediate_server.policy import Decision, Guard, Policy, RulesPolicy
from intermediate_server.policy.rules_file import parse_rules
from intermediate_server.registry import Registry
from intermediate_server.sessions.dispatcher import Sessions
from intermediate_server.sessions.totals import SessionTotals
from intermediate_server.types import Identity, Registration

START = datetime(2026, 6, 1, tzinfo=UTC)


AGENT_OF_WEB = b"\x10\x03web"


ACK_WEB = b"\x12\x00\x03web"


NACK_WEB = b"\x13\x02\x03web"


class Scripted(Policy):
    """Answers what the test says, when it says it."""

    def __init__(self, answer: Decision) -> None:
        self.answer = answer
        self.asked: list[Registration] = []
        self.admission = asyncio.Event()
        self.admission.set()

    @override
    async def authorize(self, registration: Registration) -> Decision:
        self.asked.append(registration)
        answer = self.answer
        await self.admission.wait()
        return answer


@dataclass
class Bench:
    """Sessions with everything around them in memory."""

    sessions: Sessions
    totals: SessionTotals
    commands: list[Command]
    tasks: set[asyncio.Task[None]]
    now: datetime = START

    def connect(self, conn: int, certificate: bytes | None = None, *, host: str = "198.51.100.1") -> None:
        certificates = [] if certificate is None else [certificate]
        self.sessions.dispatch(Event.Connected(conn, None, (host, 4_000 + conn), certificates, 1))

    def send(self, conn: int, data: bytes = AGENT_OF_WEB) -> None:
        self.sessions.dispatch(Event.Control(conn, data))

    def take(self) -> list[Command]:
        taken = [command for command in self.commands if not _is_report(command)]
        self.commands.clear()
        return taken

    async def settle(self) -> list[Command]:
        """Let every task come to rest."""
        for _ in range(50):
            await asyncio.sleep(0)
        return self.take()

    def kinds(self, commands: list[Command]) -> list[str]:
        return [type(command).__name__.rpartition(".")[2] for command in commands]


def _is_report(command: Command) -> bool:
    return isinstance(command, Command.SendDatagram) and command.data[:1] in (b"\x01", b"\x02")


def identity(certificate: bytes) -> Identity:
    """Certificates of these tests are ``name`` or ``name|seconds until the end``."""
    name, _, seconds = certificate.decode().partition("|")
    if name == "unreadable":
        raise CertificateError("not a certificate")
    return Identity(
        fingerprint=hashlib.sha256(certificate).hexdigest(),
        key_hash=hashlib.sha256(name.encode()).digest(),
        subject=f"CN={name}",
        dns_names=(f"{name}.example.com",),
        uris=(),
        not_before=START - timedelta(days=1),
        not_after=START + timedelta(seconds=float(seconds or 1e6)),
    )


def ids(chain: list[bytes]) -> tuple[CertificateId, ...]:
    return tuple(CertificateId(hashlib.sha256(der).hexdigest(), b"issuer", len(der)) for der in chain)


def make(policy: Policy, tasks: set[asyncio.Task[None]], admission: Admission | None = None) -> Bench:
    totals, commands = SessionTotals(), list[Command]()

    def spawn(coroutine: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        tasks.add(task)
        return task

    bench: Bench
    made = Sessions(
        submit=lambda *new: commands.extend(new),
        registry=Registry(),
        guard=Guard(policy),
        identify=identity,
        totals=totals,
        spawn=spawn,
        admission=admission,
        quotas=Quotas(),
        clock=lambda: bench.now.timestamp(),  # noqa: PLW0108 - the moment changes
    )
    bench = Bench(made, totals, commands, tasks)
    return bench


def rules(*tables: dict[str, object], clock: Any = lambda: START) -> RulesPolicy:
    return RulesPolicy(parse_rules(tables), clock=clock)


WEB: dict[str, object] = {"name": "web", "peers": "anyone", "agent": ["web"]}
