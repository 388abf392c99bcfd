"""What identities hold and may use: their connections, the meter in the engine, and the volume of the month.

All connections of a proven key share one account and one meter; of those without a certificate, all of one network.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from intermediate_server.engine import Command
from intermediate_server.policy import Limits
from intermediate_server.server.volumes import Volumes
from intermediate_server.types import ConnectionId, Peer

IdentityClass = Literal["certificate", "anonymous"]
Rates = tuple[int, int]
"""Bytes and packets a second; 0 is unlimited, as the engine has it."""


@dataclass(frozen=True, slots=True)
class OverLimit:
    """Why a limit does not let a registration in."""

    cause: str
    """``connections`` or ``volume``."""
    reason: str


@dataclass(slots=True)
class _Account:
    key: str
    meter: int
    kind: IdentityClass
    connections: dict[ConnectionId, Counter[Limits]] = field(default_factory=dict)
    """The limits of every live registration, by connection; those without a registration stay until they close."""
    registered: dict[ConnectionId, None] = field(default_factory=dict)
    """Connections with a registration, the oldest first."""
    limits: Counter[Limits] = field(default_factory=Counter)
    """The same for all connections together; there are only as many as there are rules."""
    rates: Rates = (0, 0)


class Accounts:
    """The accounts of all connections that have or had a registration."""

    def __init__(self, volumes: Volumes | None = None) -> None:
        """Without ``volumes`` nothing is counted by the month."""
        self._volumes = volumes
        self._accounts: dict[str, _Account] = {}
        self._of: dict[ConnectionId, _Account] = {}
        self._counted: dict[int, str] = {}
        """The identity of each meter whose volume counts."""
        self._retired: list[_Account] = []
        """Accounts whose last connection closed; the engine reports the meter of each once more."""

    def over_limit(self, peer: Peer, limits: Limits) -> OverLimit | None:
        """Why the limits do not allow the peer another, or its present, registration; None when they do.

        The connections that have been registered longest stay, so what is refused is what came last.
        """
        if limits.connections is not None:
            # Its account is found once: an address may change.
            account = self._of.get(peer.conn) or self._accounts.get(_key(peer))
            registered = {} if account is None else account.registered
            first = islice(registered, limits.connections)
            if len(registered) >= limits.connections and peer.conn not in first:
                return OverLimit(
                    "connections", f"{limits.connections} connections of it are registered, the most allowed"
                )
        if limits.bytes_per_month is not None and peer.identity is not None and self._volumes is not None:
            used = self._volumes.used(_key(peer))
            if used >= limits.bytes_per_month:
                end = self._volumes.month_end().date().isoformat()
                return OverLimit("volume", f"its {limits.bytes_per_month} bytes of this month are used up, until {end}")
        return None

    def hold(self, peer: Peer, limits: Limits) -> list[Command]:
        """Note a registration; what the engine must be told before its routes."""
        conn = peer.conn
        account = self._of.get(conn) or self._open(peer)
        attach = conn not in account.connections
        own = account.connections.setdefault(conn, Counter())
        self._of[conn] = account
        account.registered[conn] = None
        own[limits] += 1
        account.limits[limits] += 1
        return self._meter(account, conn, attach=attach)

    def release(self, peer: Peer, limits: Limits) -> list[Command]:
        """Note the end of a registration that was held."""
        account = self._of.get(peer.conn)
        if account is None:
            return []
        own = account.connections[peer.conn]
        for counter in (own, account.limits):
            counter[limits] -= 1
            if counter[limits] <= 0:
                del counter[limits]
        if not own:
            del account.registered[peer.conn]
        return self._meter(account, peer.conn, attach=False)

    def closed(self, conn: ConnectionId) -> list[Command]:
        """Forget a connection with everything it holds."""
        account = self._of.pop(conn, None)
        if account is None:
            return []
        account.limits -= account.connections.pop(conn)
        account.registered.pop(conn, None)
        if not account.connections:
            del self._accounts[account.key]
            self._retired.append(account)
            return []
        return self._meter(account, next(iter(account.connections)), attach=False)

    def count(self, usage: Iterable[tuple[int, int, int]]) -> Iterator[ConnectionId]:
        """Take the engine's report of bytes by meter; gives the connections whose identity has reached a limit."""
        retired, self._retired = self._retired, []
        for meter, received, sent in usage:
            key = self._counted.get(meter)
            if key is None or self._volumes is None:
                continue
            self._volumes.add(key, received + sent)
            account = self._accounts.get(key)
            if account is not None and self._exceeded(account):
                yield from tuple(account.connections)
        for account in retired:
            if account.key not in self._accounts:
                self._counted.pop(account.meter, None)

    def _exceeded(self, account: _Account) -> bool:
        lowest = min((item.bytes_per_month for item in account.limits if item.bytes_per_month), default=None)
        return lowest is not None and self._volumes is not None and self._volumes.used(account.key) >= lowest

    def _open(self, peer: Peer) -> _Account:
        key = _key(peer)
        account = self._accounts.get(key)
        if account is None:
            # The same meter whenever it comes back: the engine keeps one whose buckets are not full.
            meter = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])
            account = _Account(key, meter, "anonymous" if peer.identity is None else "certificate")
            self._accounts[key] = account
            if peer.identity is not None:
                self._counted[meter] = key
        return account

    def _meter(self, account: _Account, conn: ConnectionId, *, attach: bool) -> list[Command]:
        rates = _lowest(account.limits)
        if rates == account.rates and not attach:
            return []
        account.rates = rates
        return [Command.SetLimits(conn, account.meter, account.kind, *rates)]


def _key(peer: Peer) -> str:
    return peer.address.source if peer.identity is None else peer.identity.key_hash.hex()


def _lowest(limits: Iterable[Limits]) -> Rates:
    all_limits = tuple(limits)
    return (
        min((item.bytes_per_second for item in all_limits if item.bytes_per_second), default=0),
        min((item.packets_per_second for item in all_limits if item.packets_per_second), default=0),
    )
