"""Every question an operator can ask of a running server, and every action: one method each.

HTTP and its page show them through ``admin``, the process maps signals to them. ``policy explain`` and ``policy test``
answer the same question as :meth:`Operations.explain` without a server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from intermediate_server.access.admission import Refusal
from intermediate_server.access.explain import AccessQuery, Explainer, Explanation
from intermediate_server.access.usage import MonthlyUsage
from intermediate_server.admin import Numbers, Status
from intermediate_server.audit import Audit, plain_identity
from intermediate_server.engine import Engine
from intermediate_server.engine.bridge import Bridge
from intermediate_server.join.totals import JoinTotals
from intermediate_server.registry import Registry
from intermediate_server.server.drain import Stopping
from intermediate_server.server.reload import Outcome, Reloader
from intermediate_server.server.reserved_addresses import Addresses
from intermediate_server.sessions.dispatcher import Sessions
from intermediate_server.sessions.session import Session
from intermediate_server.sessions.totals import SessionTotals
from intermediate_server.types import Identity
from intermediate_server.wire import close_codes

MOST = 1_000
"""Most clients in a list; its total counts all."""

DISCONNECTED = "disconnected by the operator"
"""The reason in the CONNECTION_CLOSE frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """The operations of one server. Belongs to its event loop."""

    engine: Engine
    bridge: Bridge
    sessions: Sessions
    registry: Registry
    totals: SessionTotals
    state: Status
    reloader: Reloader
    stopping: Stopping
    audit: Audit
    usage: MonthlyUsage
    addresses: Addresses
    joins: JoinTotals
    token: str
    """The token that an action over HTTP must show."""
    hosts: Collection[str] = ()
    """Names beside localhost that an HTTP request may be for."""

    # Questions

    def status(self) -> dict[str, Any]:
        """Readiness and state of the server; holds no secret."""
        return self.state.details(self.engine.counters()["half_open"], len(self.sessions.registrations.anonymous))

    def clients(self) -> dict[str, Any]:
        """All clients, oldest first."""
        return _list_clients(self.sessions.live)

    def anonymous(self) -> dict[str, Any]:
        """The clients without a certificate that have a registration: a migration ends when there is none."""
        return _list_clients(self.sessions.registrations.anonymous)

    def direct(self) -> dict[str, Any]:
        """The last introductions for a direct path, newest first, and how many are open."""
        book = self.sessions.signaling.book
        return {
            "open": {state.value: count for state, count in book.states.items()},
            "ended": [record.as_dict() for record in reversed(book.records)],
        }

    def services(self) -> dict[str, dict[str, int]]:
        """The number of agents and connectors of each service."""
        registry = self.registry
        return {
            name: {"agents": len(registry.agents(name)), "connectors": len(registry.connectors(name))}
            for name in sorted(registry.services())
        }

    async def explain(self, query: AccessQuery) -> Explanation:
        """The decision of the settings in force about a registration, and its reasons.

        Each answer makes a Python policy or a callout anew. Raises ``ConfigError`` and ``CertificateError``.
        """
        explainer = await asyncio.to_thread(Explainer, self.reloader.settings)
        try:
            return await explainer.explain(query)
        finally:
            await explainer.aclose()

    def numbers(self) -> Numbers:
        """Every number of engine and sessions, read now."""
        engine = self.engine
        return Numbers(
            counters=engine.counters(),
            drops=engine.drops(),
            drops_by_class=engine.drops_by_class(),
            services=engine.services(),
            totals=self.totals,
            counts=self.registry.counts,
            lag=self.bridge.lag,
            dispatch_errors=self.bridge.dispatch_errors,
            anonymous_clients=len(self.sessions.registrations.anonymous),
            signaling=self.sessions.signaling.book.totals,
            signaling_states=self.sessions.signaling.book.states,
            joins=self.joins,
            lost={
                "audit_lines": self.audit.lost,
                "volume_writes": self.usage.failures,
                "address_writes": self.addresses.failures,
            },
        )

    # Actions

    async def reload(self, why: str) -> Outcome:
        """Read configuration and files again, and wait for the re-authorization of all that is registered."""
        return await self.reloader.reload(why)

    def disconnect(self, conn: int) -> bool:
        """Close one connection, which may come back; False when there is none of that id."""
        return self.sessions.disconnect(
            conn, Refusal(close_codes.SHUTTING_DOWN, "operator", DISCONNECTED, DISCONNECTED)
        )

    def drain(self) -> None:
        """End the server within the grace time, as SIGTERM does; a second call ends the wait at once."""
        self.stopping.ask()


def _list_clients(sessions: Mapping[int, Session]) -> dict[str, Any]:
    """These sessions for JSON, oldest first."""
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
