"""The interface of a policy: who may register what, and which connector an agent is sent to.

Subclass :class:`Policy`, name it as ``policy = "module:attr"``, and the server asks it about every registration.
Everything a policy is given is frozen. What a policy does wrong is a denial, never more: see
:mod:`intermediate_server.policy.guard` for the deadline and for what an exception does.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from intermediate_server.types import Peer, Registration


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an allowed peer may use; None is unlimited, numbers are at least 1.

    They hold for an identity, which is the proven public key: all its connections share them. Where its registrations
    come with different limits, the lowest of each counts.
    """

    bytes_per_second: int | None = None
    """Of what the peer sends, and once more of what it is sent."""
    packets_per_second: int | None = None
    """Likewise for each direction."""
    bytes_per_month: int | None = None
    """Both directions together, calendar month in UTC; for peers with a certificate only."""
    connections: int | None = None
    """Registered connections at a time; for peers without a certificate, of one source address."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a number below 1: nought would read as unlimited."""
        numbers = (self.bytes_per_second, self.packets_per_second, self.bytes_per_month, self.connections)
        if any(number is not None and number < 1 for number in numbers):
            raise ValueError("a limit must be at least 1; use Deny to allow nothing")


UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Allow:
    """The registration is granted."""

    rule: str = ""
    """What decided, for the audit log; no secrets."""
    limits: Limits = UNLIMITED
    valid_until: datetime | None = None
    """Aware. At that moment the policy is asked again, and the registration ends unless it is granted anew."""


@dataclass(frozen=True, slots=True)
class Deny:
    """The registration is refused; the peer is told that, and not why."""

    reason: str
    """For the log and the status page, in words an operator can act on; no secrets."""
    rule: str = ""
    """What decided, for the audit log."""
    temporary: bool = False
    """True when the answer says nothing about the peer, because the policy failed or was late.

    Clients in the field give up for the life of the connection when they are refused, and ask again when they
    hear nothing; so the server stays silent on a temporary denial.
    """


Decision = Allow | Deny


@dataclass(frozen=True, slots=True)
class Candidate:
    """A connector that could serve a service."""

    peer: Peer
    rank: int
    """0 to 2**32 - 1, lower is preferred; the healthy candidates of the lowest rank share the agents."""


@dataclass(frozen=True, slots=True)
class Step:
    """One rule or name on the way to a decision."""

    rule: str
    mismatch: str | None
    """Why it did not decide; None for the one that did."""


ANONYMOUS = "client certificates are not required: a peer without one"


class Policy(abc.ABC):
    """Decides about registrations. One instance serves the whole server and every connection.

    Its methods run on the server's event loop: wait with ``await``, never block.
    """

    concurrency: int = 64
    """New registrations it is asked about at a time; half as many questions about granted ones come on top."""
    decides_by_source: bool = True
    """Whether an answer may depend on the address of a peer, which is then asked about when it moves. As ``decide``."""

    @abc.abstractmethod
    async def authorize(self, registration: Registration) -> Decision:
        """Whether the peer may be what it asks to be.

        Asked at each registration, and again for live ones after a reload; so the answer must depend on the
        registration and the policy's own state only. Called concurrently for different connections.
        """

    def decide(self, registration: Registration) -> Decision | None:
        """The same answer without waiting, where it is at hand; None where :meth:`authorize` is to be asked.

        Asked first, at repeated registrations too: its answers are not remembered, so it must be quick. It speaks for
        the :meth:`authorize` of its own class or of those above: a subclass with another one is asked by that alone.
        """
        return None

    def explain(self, registration: Registration, at: datetime) -> tuple[Decision, tuple[Step, ...]] | None:
        """The decision at an aware moment and the way to it; None where only :meth:`authorize` knows. As ``decide``."""
        return None

    def anonymous_warning(self) -> str | None:
        """A sentence for operators who serve peers without a certificate; None where those get nothing."""
        return f"{ANONYMOUS} may register what the policy grants it"

    def select(self, service: str, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Which connectors of a service are used, and with which ranks.

        Asked when the connectors of a service change. Leave a candidate out to exclude it; give it another rank
        with ``dataclasses.replace`` to prefer it or hold it back. By default all are used as the registry ranked
        them.
        """
        return candidates

    async def on_closed(self, peer: Peer, reason: str) -> None:  # noqa: B027 - a hook; doing nothing is its default
        """Told once for each connection that had registered, after its routes are gone."""

    async def aclose(self) -> None:  # noqa: B027
        """Told once, when the server no longer uses the policy: at its end, or when a reload has put another there."""


def speaks_for_authorize(policy: Policy, method: str) -> bool:
    """Whether a policy has ``method`` of its own that no more derived ``authorize`` or ``decide`` contradicts."""
    for cls in type(policy).__mro__:
        if method in cls.__dict__:
            return cls is not Policy
        if "authorize" in cls.__dict__ or "decide" in cls.__dict__:
            return False
    return False
