"""The state of one connection, without any IO."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from intermediate_server.pki import CertificateId
from intermediate_server.policy import Allow, Candidate, Deny
from intermediate_server.types import Peer, Role

if TYPE_CHECKING:
    from intermediate_server.policy import Decision

MAX_DECISIONS = 128
"""Decisions remembered for a connection; more than it may register, so that denials fit in too."""

DENIED_FOR = 10.0
"""Seconds for which a denial is repeated without asking the policy again."""

CONTROL_PER_SECOND = 200
"""Registration messages of one connection handled in a second; a client with 64 services sends 192 in six."""

ROLE_NAMES = {Role.AGENT: "Agent", Role.CONNECTOR: "Connector"}


class Spawn(Protocol):
    """Starts a task that the server waits for or cancels at its end: ``TaskGroup.create_task``."""

    def __call__(self, coro: Coroutine[Any, Any, None], /) -> asyncio.Task[None]: ...


Select = Callable[[str, Sequence[Candidate]], tuple[tuple[Candidate, ...], str | None]]


class Session:
    """One admitted connection."""

    __slots__ = (
        "chain",
        "closing",
        "decisions",
        "grants",
        "logged",
        "malformed_signals",
        "next_report",
        "offered",
        "peer",
        "pending",
        "reauthorizations",
        "registered",
        "report_timer",
        "since",
        "spent",
        "task",
        "window",
    )

    def __init__(self, peer: Peer, *, chain: tuple[CertificateId, ...] = (), since: float = 0.0) -> None:
        """``chain`` are the certificates the peer showed, leaf first; ``since`` is a Unix time."""
        self.peer = peer
        self.chain = chain
        self.since = since
        self.registered = False
        """Whether a registration was ever granted."""
        self.grants: dict[tuple[Role, str], Allow] = {}
        """The registrations in force with the decision behind each; the registry bounds their number."""
        self.closing = False
        """Whether this side has asked for its end; its messages are ignored from then on."""
        self.decisions: dict[tuple[Role, str], tuple[Decision, float]] = {}
        """Answers of the policy, each with the end of its reuse for repeated registrations by the loop's clock."""
        self.reauthorizations = 0
        """How often the policy's answers have become void; an answer is void if this has grown since its question."""
        self.pending: list[bytes] = []
        """Messages behind one whose decision is awaited."""
        self.task: asyncio.Task[None] | None = None
        """Awaits a decision; at most one, so that answers keep their order."""
        self.offered = False
        """Whether it has made an offer before it registered anything: it is given longer for that, once."""
        self.malformed_signals = 0
        self.next_report = 0.0
        self.report_timer: asyncio.TimerHandle | None = None
        self.logged = True
        """Whether the lines about its beginning and end are above debug level."""
        self.window = 0.0
        self.spent = 0

    def remember(self, role: Role, service: str, decision: Decision, now: float) -> bool:
        """Keep a decision, in place of the oldest when there are too many; returns whether it differs from the last
        one."""
        key = role, service
        old, until = self.decisions.get(key, (None, now))
        if old is None and len(self.decisions) >= MAX_DECISIONS:
            del self.decisions[next(iter(self.decisions))]
        # A repeated denial keeps its end.
        if old != decision or now >= until:
            self.decisions[key] = decision, now + DENIED_FOR if isinstance(decision, Deny) else inf
        return old != decision

    def remembered(self, role: Role, service: str, now: float) -> Decision | None:
        """The decision to repeat, None when the policy is to be asked."""
        decision, until = self.decisions.get((role, service), (None, now))
        return decision if now < until else None

    def forget(self, key: tuple[Role, str] | None = None) -> None:
        """Make the policy's answers about ``key``, or all of them, void, also those on their way."""
        self.reauthorizations += 1
        if key is None:
            self.decisions.clear()
        else:
            self.decisions.pop(key, None)

    def takes(self, now: float) -> bool:
        """Whether one more registration message is within the connection's rate."""
        if now - self.window >= 1.0:
            self.window = now
            self.spent = 0
        self.spent += 1
        return self.spent <= CONTROL_PER_SECOND

    def close(self) -> None:
        """Cancel the timer and the task of the connection, which is asked to close or has closed."""
        self.closing = True
        self.pending.clear()
        if self.report_timer is not None:
            self.report_timer.cancel()
            self.report_timer = None
        if self.task is not None:
            self.task.cancel()
            self.task = None
