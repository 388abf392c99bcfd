"""The interface of a policy, which decides about registrations and the choice of connectors.

Subclass :class:`Policy`, name it as ``policy = "module:attr"``, and the server asks it about every registration. A
policy is given frozen values only. Each of its failures is a denial and nothing worse: see
:mod:`intermediate_server.policy.guard` for deadlines and exceptions.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from intermediate_server.types import Peer, Registration


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of an allowed peer; None is unlimited, numbers are at least 1.

    All connections of an identity, which is a proven public key, share them. If its registrations come with different
    limits, the lowest of each counts.
    """

    bytes_per_second: int | None = None
    """From the peer, and as many again to it."""
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
    """Name of the rule that decided, for the audit log; no secrets."""
    limits: Limits = UNLIMITED
    valid_until: datetime | None = None
    """Aware. The policy is asked again at that moment, and the registration ends unless it is granted anew."""
    direct: bool = True
    """Whether the peer may be introduced for a direct path, on which the relay sees no packet of the service."""


@dataclass(frozen=True, slots=True)
class Deny:
    """The registration is refused; the peer does not learn the reason."""

    reason: str
    """For the log and the status page, in words an operator can act on; no secrets."""
    rule: str = ""
    """Name of the rule that decided, for the audit log."""
    temporary: bool = False
    """True when the answer says nothing about the peer, because the policy failed or was late.

    Clients in the field give up until they reconnect after a NACK, and ask again after silence; so the server answers a
    temporary denial with silence.
    """


Decision = Allow | Deny


@dataclass(frozen=True, slots=True)
class Candidate:
    """A connector that could serve a service."""

    peer: Peer
    rank: int
    """0 to 2**32 - 2, lower is preferred; the healthy candidates of the lowest rank share the agents."""


@dataclass(frozen=True, slots=True)
class Step:
    """One rule or name on the way to a decision."""

    rule: str
    mismatch: str | None
    """The reason it did not decide; None for the step that did."""


ANONYMOUS = "client certificates are not required: a peer without one"


class Policy(abc.ABC):
    """Decides about registrations. One instance serves the whole server and every connection.

    Its methods run on the server's event loop: wait with ``await``, never block.
    """

    concurrency: int = 64
    """Concurrent questions about new registrations; half as many about grants come on top."""
    decides_by_source: bool = True
    """Whether answers may depend on the peer's address; the policy is then asked again when a peer moves. As
    ``decide``."""

    @abc.abstractmethod
    async def authorize(self, registration: Registration) -> Decision:
        """The decision about a registration.

        Called at each registration, and again for live ones after a reload, so the answer must depend on the
        registration and the policy's own state only. Calls for different connections are concurrent.
        """

    def decide(self, registration: Registration) -> Decision | None:
        """The same decision without waiting, or None to have :meth:`authorize` asked.

        Called first, at repeated registrations too: its answers are not remembered, so it must be quick. A subclass
        that overrides :meth:`authorize` alone is asked by that alone.
        """
        return None

    def explain(self, registration: Registration, at: datetime) -> tuple[Decision, tuple[Step, ...]] | None:
        """The decision at an aware moment and the way to it; None where only :meth:`authorize` knows. As ``decide``."""
        return None

    def anonymous_warning(self) -> str | None:
        """A warning for operators who serve peers without a certificate; None if the policy grants those nothing."""
        return f"{ANONYMOUS} may register what the policy grants it"

    def select(self, service: str, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Choose among the connectors of a service, and rank them.

        Called when the connectors of a service change. Leave a candidate out to exclude it; give it another rank with
        ``dataclasses.replace`` to prefer it or hold it back. By default all are used with the registry's ranks.
        """
        return candidates

    async def on_closed(self, peer: Peer, reason: str) -> None:  # noqa: B027 - a hook; doing nothing is its default
        """Called once for each connection that had registered, after the end of its routes."""

    async def aclose(self) -> None:  # noqa: B027
        """Called once when the server ends or a reload has put another policy in force."""


def speaks_for_authorize(policy: Policy, method: str) -> bool:
    """Whether a policy overrides ``method``, and no class further down overrides ``authorize`` or ``decide``."""
    for cls in type(policy).__mro__:
        if method in cls.__dict__:
            return cls is not Policy
        if "authorize" in cls.__dict__ or "decide" in cls.__dict__:
            return False
    return False
