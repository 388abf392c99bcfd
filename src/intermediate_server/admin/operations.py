"""The operations of a server that HTTP needs; ``server.operations`` implements them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from intermediate_server.admin.status import Status
from intermediate_server.engine import ServiceCounters
from intermediate_server.engine.lag import LoopLag
from intermediate_server.join.totals import JoinTotals
from intermediate_server.registry import Counts
from intermediate_server.sessions.totals import SessionTotals
from intermediate_server.signaling import SignalingTotals, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Every number of a server at one moment, for one scrape."""

    counters: Mapping[str, int]
    """Totals of the engine by name."""
    drops: Mapping[str, int]
    """Dropped datagrams by reason."""
    drops_by_class: Mapping[tuple[str, str], int]
    """Dropped datagrams by reason and identity class of the sender."""
    services: Sequence[ServiceCounters]
    totals: SessionTotals
    counts: Counts
    """Live registrations."""
    lag: LoopLag
    dispatch_errors: int = 0
    """Events whose handler failed."""
    anonymous_clients: int = 0
    signaling: SignalingTotals = field(default_factory=SignalingTotals)
    signaling_states: Mapping[State, int] = field(default_factory=dict)
    joins: JoinTotals = field(default_factory=JoinTotals)
    lost: Mapping[str, int] = field(default_factory=dict)
    """Records lost or late, by kind."""


class ReloadOutcome(Protocol):
    """The outcome of a reload, as HTTP shows it."""

    @property
    def error(self) -> str | None: ...
    @property
    def changed(self) -> tuple[str, ...]: ...
    @property
    def needs_restart(self) -> tuple[str, ...]: ...
    @property
    def revoked(self) -> int: ...
    @property
    def closed(self) -> int: ...


class Operations(Protocol):
    """The operations that HTTP offers."""

    @property
    def token(self) -> str:
        """The token of an action; an empty one offers none."""

    @property
    def hosts(self) -> Collection[str]:
        """Names beside localhost that a request may be for."""

    @property
    def state(self) -> Status:
        """Whether the server is alive and ready."""

    def status(self) -> dict[str, Any]:
        """The body of ``/readyz``; holds no secret."""

    def clients(self) -> dict[str, Any]:
        """All clients, oldest first."""

    def anonymous(self) -> dict[str, Any]:
        """The clients without a certificate that have a registration."""

    def direct(self) -> dict[str, Any]:
        """The last introductions, newest first."""

    def numbers(self) -> Numbers:
        """Every number, read now."""

    async def reload(self, why: str) -> ReloadOutcome:
        """Read configuration and files again; the result of the re-authorization is in the outcome."""

    def disconnect(self, conn: int) -> bool:
        """Close one connection; False when there is none of that id."""
