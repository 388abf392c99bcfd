"""Quotas of identities: their connections, the limiter in the engine and the usage of the month.

All connections of a proven key share one quota and one limiter, as do the anonymous ones of one network.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from intermediate_server.access.succession import succeeds
from intermediate_server.access.usage import MonthlyUsage
from intermediate_server.engine import Command
from intermediate_server.policy import Limits
from intermediate_server.types import ConnectionId, Identity, Peer

IdentityClass = Literal["certificate", "anonymous"]
Rates = tuple[int, int]
"""Bytes and packets a second; 0 is unlimited, as the engine has it."""


@dataclass(frozen=True, slots=True)
class OverLimit:
    """The limit that denies a registration."""

    cause: str
    """``connections`` or ``volume``."""
    reason: str


@dataclass(slots=True)
class _Quota:
    key: str
    limiter: int
    kind: IdentityClass
    connections: dict[ConnectionId, Counter[Limits]] = field(default_factory=dict)
    """The limits of every live registration by connection; a connection without registrations stays until it closes."""
    registered: dict[ConnectionId, Identity | None] = field(default_factory=dict)
    """Connections with a registration and their certificates, the oldest first."""
    limits: Counter[Limits] = field(default_factory=Counter)
    """The same for all connections together; there are only as many as there are rules."""
    rates: Rates = (0, 0)


class Quotas:
    """The quotas of all connections that have or had a registration."""

    def __init__(self, usage: MonthlyUsage | None = None) -> None:
        """Without ``usage`` nothing is counted by the month."""
        self._usage = usage
        self._quotas: dict[str, _Quota] = {}
        self._of: dict[ConnectionId, _Quota] = {}
        self._counted: dict[int, str] = {}
        """The identity of each limiter whose usage counts."""
        self._retired: list[_Quota] = []
        """Quotas whose last connection closed; the engine reports the limiter of each once more."""

    def over_limit(self, peer: Peer, limits: Limits) -> OverLimit | None:
        """The limit that forbids the peer another, or its present, registration; None when it is allowed.

        The oldest connections stay, so the newest one is refused; only a certificate that is newer than all of theirs
        gets one place more, for as long as :meth:`has_surplus` is tolerated.
        """
        if limits.connections is not None:
            # A connection keeps its quota when its address changes.
            quota = self._of.get(peer.conn) or self._quotas.get(_key(peer))
            registered = {} if quota is None else quota.registered
            first = islice(registered, limits.connections)
            others = [identity for conn, identity in registered.items() if conn != peer.conn]
            moves = len(others) == limits.connections and succeeds(peer.identity, others)
            if len(registered) >= limits.connections and peer.conn not in first and not moves:
                return OverLimit(
                    "connections", f"{limits.connections} connections of it are registered, the most allowed"
                )
        if limits.bytes_per_month is not None and peer.identity is not None and self._usage is not None:
            used = self._usage.used(_key(peer))
            if used >= limits.bytes_per_month:
                end = self._usage.month_end().date().isoformat()
                return OverLimit("volume", f"its {limits.bytes_per_month} bytes of this month are used up, until {end}")
        return None

    def has_surplus(self, peer: Peer) -> bool:
        """Whether the identity of a connection has more registered ones than its rules allow."""
        quota = self._of.get(peer.conn)
        if quota is None:
            return False
        lowest = min((item.connections for item in quota.limits if item.connections), default=None)
        return lowest is not None and len(quota.registered) > lowest

    def hold(self, peer: Peer, limits: Limits) -> list[Command]:
        """Count a registration; returns the commands that must come before its routes."""
        conn = peer.conn
        quota = self._of.get(conn) or self._open(peer)
        attach = conn not in quota.connections
        own = quota.connections.setdefault(conn, Counter())
        self._of[conn] = quota
        quota.registered[conn] = peer.identity
        own[limits] += 1
        quota.limits[limits] += 1
        return self._limits(quota, conn, attach=attach)

    def revoke(self, peer: Peer, limits: Limits) -> list[Command]:
        """Count a registration no more."""
        quota = self._of.get(peer.conn)
        if quota is None:
            return []
        own = quota.connections[peer.conn]
        for counter in (own, quota.limits):
            counter[limits] -= 1
            if counter[limits] <= 0:
                del counter[limits]
        if not own:
            del quota.registered[peer.conn]
        return self._limits(quota, peer.conn, attach=False)

    def close(self, conn: ConnectionId) -> list[Command]:
        """Revoke everything that a connection holds, and close it."""
        quota = self._of.pop(conn, None)
        if quota is None:
            return []
        quota.limits -= quota.connections.pop(conn)
        quota.registered.pop(conn, None)
        if not quota.connections:
            del self._quotas[quota.key]
            self._retired.append(quota)
            return []
        return self._limits(quota, next(iter(quota.connections)), attach=False)

    def count(self, usage: Iterable[tuple[int, int, int]]) -> Iterator[ConnectionId]:
        """Take the engine's report of bytes by limiter; yields the connections whose identity has reached a limit."""
        retired, self._retired = self._retired, []
        for limiter, received, sent in usage:
            key = self._counted.get(limiter)
            if key is None or self._usage is None:
                continue
            self._usage.add(key, received + sent)
            quota = self._quotas.get(key)
            if quota is not None and self._exceeded(quota):
                yield from tuple(quota.connections)
        for quota in retired:
            if quota.key not in self._quotas:
                self._counted.pop(quota.limiter, None)

    def _exceeded(self, quota: _Quota) -> bool:
        lowest = min((item.bytes_per_month for item in quota.limits if item.bytes_per_month), default=None)
        return lowest is not None and self._usage is not None and self._usage.used(quota.key) >= lowest

    def _open(self, peer: Peer) -> _Quota:
        key = _key(peer)
        quota = self._quotas.get(key)
        if quota is None:
            # The identity has the same limiter when it comes back: the engine keeps it until its buckets are full.
            limiter = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])
            quota = _Quota(key, limiter, "anonymous" if peer.identity is None else "certificate")
            self._quotas[key] = quota
            if peer.identity is not None:
                self._counted[limiter] = key
        return quota

    def _limits(self, quota: _Quota, conn: ConnectionId, *, attach: bool) -> list[Command]:
        rates = _lowest(quota.limits)
        if rates == quota.rates and not attach:
            return []
        quota.rates = rates
        return [Command.SetLimits(conn, quota.limiter, quota.kind, *rates)]


def _key(peer: Peer) -> str:
    return peer.address.source if peer.identity is None else peer.identity.key_hash.hex()


def _lowest(limits: Iterable[Limits]) -> Rates:
    all_limits = tuple(limits)
    return (
        min((item.bytes_per_second for item in all_limits if item.bytes_per_second), default=0),
        min((item.packets_per_second for item in all_limits if item.packets_per_second), default=0),
    )
