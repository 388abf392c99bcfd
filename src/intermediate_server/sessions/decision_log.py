"""Lines that peers cause in the audit log and in the ordinary one, with a bound for each kind.

A peer may make up names, change its address and connect as often as it likes. So each identity may cause a number of
lines of each kind in an hour, and all identities together a larger one; a peer without a certificate counts by its
source. Lines beyond those are counted in one line at the end of the hour. A new connection renews nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

import structlog

from intermediate_server.audit import Audit, who
from intermediate_server.logs import Repeats
from intermediate_server.sessions.session import ROLE_NAMES
from intermediate_server.types import Peer, Role

LINES = 256
"""Lines of one kind for one identity or source in a window."""

FEWER = frozenset({"denied", "rejected", "refused", "address", "failure"})
"""Kinds with exactly ``LINES``; others have four times as many, since many clients may share one source."""

ALL_LINES = 200_000
"""Lines of one kind for all identities together."""

WINDOW = 3600.0
"""Seconds of a window; each begins with all its lines."""

OWNERS = 10_000
"""Identities and sources whose lines are counted; with more, the oldest count is closed early."""

AUDITED = frozenset(
    {
        *("allowed", "denied", "revoked", "rejected", "disconnected"),
        *("issued", "repeated", "pending", "refused", "left"),  # of joins and renewals
    }
)
"""Kinds that are decisions; the rest are lines of the ordinary log only."""

_EVENTS = {
    "allowed": "Registration",
    "denied": "Registration denied",
    "revoked": "Registration revoked",
}

_log = structlog.get_logger()


@dataclass(slots=True)
class _Window:
    ends: float
    """By the loop's clock."""
    peer: Peer | None
    """The peer of the latest line; None in the window of all together."""
    counts: Counter[str] = field(default_factory=Counter)

    def take(self, kind: str) -> bool:
        self.counts[kind] += 1
        return self.over(kind) <= 0

    def over(self, kind: str) -> int:
        limit = ALL_LINES if self.peer is None else LINES if kind in FEWER else 4 * LINES
        return self.counts[kind] - limit


class Decisions:
    """Writes decisions into the logs while there are lines left for them."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        """By owner; the one that ends first is in front."""
        self._all: _Window | None = None
        self._refused = Repeats()

    def registration(
        self, decision: str, peer: Peer, key: tuple[Role, str], *, cause: str, rule: str, reason: str = ""
    ) -> None:
        """Write that a registration was ``allowed``, ``denied`` or ``revoked``."""
        if not self.may_write(decision, peer):
            return
        role, service = key
        self._audit.record(decision, peer, cause=cause, role=role, service=service, rule=rule, reason=reason)
        write = _log.info if decision == "allowed" else _log.warning
        why = {"reason": reason} if reason else {}
        write(f"{_EVENTS[decision]}: {ROLE_NAMES[role]} for service {service!r}", **who(peer), rule=rule, **why)

    def connection(
        self,
        decision: str,
        peer: Peer,
        *,
        cause: str,
        reason: str,
        lost: Iterable[tuple[Role, str]] | None = None,
    ) -> None:
        """Write that a connection was ``rejected``, or ``disconnected`` with the registrations it ``lost``.

        A rejected peer may come again at once, so the ordinary log has one line in half a minute for each cause.
        """
        if self.may_write(decision, peer):
            self._audit.record(decision, peer, cause=cause, reason=reason, lost=lost)
            more: dict[str, int] | None = {}
            if decision == "rejected":
                more = self._refused.due((owner_of(peer), cause), asyncio.get_running_loop().time())
            if more is not None:
                _log.warning(f"Connection of {peer.address} {decision}", **who(peer), reason=reason, **more)

    def may_write(self, kind: str, peer: Peer | None) -> bool:
        """Take a line of a kind, if there is one left; ``peer`` is None for a line about no peer."""
        now = asyncio.get_running_loop().time()
        self.sweep(now)
        if peer is not None:
            owner = owner_of(peer)
            window = self._windows.get(owner)
            if window is None:
                window = self._windows[owner] = _Window(now + WINDOW, peer)
            window.peer = peer
            if not window.take(kind):
                return False
        if self._all is None:
            self._all = _Window(now + WINDOW, None)
        return self._all.take(kind)

    def sweep(self, now: float) -> None:
        """Close the windows that are over by the loop's clock, and the oldest ones beyond ``OWNERS``."""
        while self._windows:
            owner, window = next(iter(self._windows.items()))
            if window.ends > now and len(self._windows) <= OWNERS:
                break
            del self._windows[owner]
            self._close(window)
        if self._all is not None and self._all.ends <= now:
            self._close(self._all)
            self._all = None

    def stop(self) -> None:
        """Close every window."""
        self.sweep(float("inf"))

    def _close(self, window: _Window) -> None:
        """Write the number of decisions without a line of their own."""
        for kind in window.counts:
            more = window.over(kind)
            if more <= 0:
                continue
            if kind in AUDITED:
                self._audit.record(kind, window.peer, cause="more", count=more)
            whose = {} if window.peer is None else who(window.peer)
            _log.warning("More lines", **whose, kind=kind, count=more)


def owner_of(peer: Peer) -> str:
    """The identity or source by which what a peer causes is counted."""
    return peer.address.source if peer.identity is None else peer.identity.key_hash.hex()
