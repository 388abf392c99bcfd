"""What is written about registrations, into the audit log and the ordinary one.

A peer makes up as many names and changes its address as often as it likes, so each kind of decision has a number of
lines for each connection and hour; the rest are counted in one line when the hour or the connection is over.
"""

from __future__ import annotations

import asyncio

import structlog

from intermediate_server.server.audit import Audit, who
from intermediate_server.server.session import ROLE_NAMES, Session
from intermediate_server.types import Role

LINES = 256
"""Decisions of one kind that have lines of their own, for each connection and window."""

WINDOW = 3600.0
"""Seconds after which a connection has as many lines again."""

_SAID = {
    "allowed": "Registration",
    "denied": "Registration refused",
    "withdrawn": "Registration withdrawn",
}

_log = structlog.get_logger()


def tell(
    audit: Audit,
    session: Session,
    decision: str,
    key: tuple[Role, str],
    *,
    cause: str,
    rule: str,
    reason: str = "",
) -> None:
    """Write down a decision, ``allowed``, ``denied`` or ``withdrawn``, about a session's registration."""
    now = asyncio.get_running_loop().time()
    if now - session.told_since >= WINDOW:
        tell_rest(audit, session)
        session.told_since = now
    session.told[decision] += 1
    if session.told[decision] > LINES:
        return
    (role, service), peer = key, session.peer
    audit.record(decision, peer, cause=cause, role=role, service=service, rule=rule, reason=reason)
    say = _log.info if decision == "allowed" else _log.warning
    why = {"reason": reason} if reason else {}
    say(f"{_SAID[decision]}: {ROLE_NAMES[role]} for service {service!r}", **who(peer), rule=rule, **why)


def tell_rest(audit: Audit, session: Session) -> None:
    """Write down how many decisions had no line of their own."""
    for decision, count in session.told.items():
        if count > LINES:
            audit.record(decision, session.peer, cause="more", count=count - LINES)
            _log.warning("More decisions", **who(session.peer), decision=decision, count=count - LINES)
    session.told.clear()
