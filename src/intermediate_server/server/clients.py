"""Who is connected and what for, for the status page, and so that a migration knows whom to call."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from intermediate_server.audit import plain_identity
from intermediate_server.sessions.session import Session
from intermediate_server.types import Identity

MOST = 1_000
"""Clients that are listed by name; the total is always there."""


def list_clients(sessions: Mapping[int, Session]) -> dict[str, Any]:
    """These sessions as JSON has them, oldest first."""
    return {
        "total": len(sessions),
        "clients": [
            {
                "conn": conn,
                "address": str(session.peer.address),
                "since": datetime.fromtimestamp(session.since, UTC).isoformat(timespec="seconds"),
                "identity": plain_identity(session.peer.identity),
                "certificate_ends": _ends(session.peer.identity),
                "registrations": [
                    {"role": role.value, "service": service, "rule": allow.rule}
                    for (role, service), allow in session.grants.items()
                ],
            }
            for conn, session in islice(sessions.items(), MOST)
        ],
    }


def _ends(identity: Identity | None) -> str | None:
    """The day on which a client's certificate ends."""
    return None if identity is None else identity.not_after.date().isoformat()
