"""What is written because of peers, into the audit log and the ordinary one.

A peer makes up as many names, changes its address and connects as often as it likes. So each kind of line has a number
for each identity and hour, and for all of them together; a peer without a certificate counts by its source. The others
are counted in one line when the hour is over. Connecting again renews nothing.
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

FEWER = frozenset({"denied", "rejected", "address", "failure"})
"""Kinds with no more; of others there are four times as many, since many clients may share one source."""

ALL_LINES = 200_000
"""Lines of one kind for all of them together."""

WINDOW = 3600.0
"""Seconds after which there are as many lines again."""

OWNERS = 10_000
"""Identities and sources whose lines are counted; with more, the count that is oldest is closed early."""

AUDITED = frozenset({"allowed", "denied", "revoked", "rejected", "disconnected"})
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
    """Who was written about last; None for all together."""
    counts: Counter[str] = field(default_factory=Counter)

    def take(self, kind: str) -> bool:
        self.counts[kind] += 1
        return self.over(kind) <= 0

    def over(self, kind: str) -> int:
        limit = ALL_LINES if self.peer is None else LINES if kind in FEWER else 4 * LINES
        return self.counts[kind] - limit


class Decisions:
    """Writes down decisions, as many as there are lines for."""

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

        Who is refused may come again at once: the ordinary log has one line of it for a cause and half minute.
        """
        if self.may_write(decision, peer):
            self._audit.record(decision, peer, cause=cause, reason=reason, lost=lost)
            more: dict[str, int] | None = {}
            if decision == "rejected":
                more = self._refused.due((_owner(peer), cause), asyncio.get_running_loop().time())
            if more is not None:
                _log.warning(f"Connection of {peer.address} {decision}", **who(peer), reason=reason, **more)

    def may_write(self, kind: str, peer: Peer | None) -> bool:
        """Take a line of a kind, if there is one; None where it is about no peer."""
        now = asyncio.get_running_loop().time()
        self.sweep(now)
        if peer is not None:
            owner = _owner(peer)
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
        """Close the windows that are over by the loop's clock, and those beyond as many as are kept."""
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
        """Write how many had no line of their own."""
        for kind in window.counts:
            more = window.over(kind)
            if more <= 0:
                continue
            if kind in AUDITED:
                self._audit.record(kind, window.peer, cause="more", count=more)
            whose = {} if window.peer is None else who(window.peer)
            _log.warning("More lines", **whose, kind=kind, count=more)


def _owner(peer: Peer) -> str:
    """Whose lines are counted together."""
    return peer.address.source if peer.identity is None else peer.identity.key_hash.hex()
