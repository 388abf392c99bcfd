"""How many connections may be open: in all, of one identity and from one source.

At the start the numbers are compared with the memory of the process and lowered if they do not fit. So the defaults
suit a small machine, and no single certificate can use the memory up.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from intermediate_server.access.succession import succeeds
from intermediate_server.config import Settings
from intermediate_server.config.values import show_size
from intermediate_server.types import ConnectionId, Peer

AT_REST = 100 << 10
"""Bytes of the whole process for a registered connection whose queues are empty; docs/benchmark.md measures it."""

ALL, SOURCE, IDENTITY = 0.75, 0.5, 0.25
"""Parts of the memory: for all connections at rest, for those of one source and of one identity with full queues."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The numbers in force, each at least 1."""

    connections: int
    per_source: int
    per_identity: int
    warnings: tuple[str, ...] = ()
    """One sentence for each configured number that is lowered."""


def fit(settings: Settings, memory: int | None = None) -> Capacity:
    """The numbers of the settings, lowered to fit ``memory``, by default the memory budget or that of the process."""
    memory = memory or settings.memory_budget or available_memory()
    full = AT_REST + settings.send_queue_bytes + settings.receive_queue_bytes
    warnings = []

    def fitted(name: str, part: float, each: int) -> int:
        asked: int = getattr(settings, name)
        most = max(1, int(memory * part) // each)
        if asked <= most:
            return asked
        if name in settings.model_fields_set:
            warnings.append(
                f"{name.replace('_', '-')} is {most} and not {asked}: a connection may take {show_size(each)}, and all "
                f"of them {part:.0%} of {memory >> 20} MiB; lower it, or set memory-budget"
            )
        return most

    return Capacity(
        connections=fitted("max_connections", ALL, AT_REST),
        per_source=fitted("connections_per_source", SOURCE, full),
        per_identity=fitted("connections_per_identity", IDENTITY, full),
        warnings=tuple(warnings),
    )


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may use: the machine's, or fewer by a cgroup (version 1 or 2)."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = cgroups / "memory" if controllers else cgroups
            group = root / path.lstrip("/")
            for directory in (group, *group.parents):
                if not directory.is_relative_to(root):
                    break
                with contextlib.suppress(OSError, ValueError):
                    name = "memory.limit_in_bytes" if controllers else "memory.max"
                    limits.append(int((directory / name).read_text()))
    return min(limits)


class Places:
    """The number of connections of each identity and source. A closing connection keeps its place until it is gone.

    A connection with a newer certificate than all others of its identity gets a place beyond the limits, one at a time:
    it is about to replace one of them.
    """

    def __init__(self, *, per_source: int, per_identity: int) -> None:
        self._per_source = per_source
        self._per_identity = per_identity
        self._held: dict[ConnectionId, Peer] = {}
        """The peers by connection, with their first addresses."""
        self._sources: Counter[str] = Counter()
        self._identities: dict[bytes, dict[ConnectionId, Peer]] = {}
        self._surplus: set[bytes] = set()
        """Identities with a connection beyond a limit."""

    def take(self, peer: Peer) -> str | None:
        """Take a place; returns None, or a sentence for the peer that says which limit is reached.

        A connection counts by its first address even after a move, or moving would free a place.
        """
        source, identity = peer.address.source, peer.identity
        others = {} if identity is None else self._identities.get(identity.key_hash, {})
        full = None
        if len(others) >= self._per_identity:
            full = f"{self._per_identity} connections of this identity are open, the most allowed"
        elif self._sources[source] >= self._per_source:
            full = f"{self._per_source} connections from this network are open, the most allowed"
        if full is not None:
            known = [other.identity for other in others.values()]
            if identity is None or not known or identity.key_hash in self._surplus or not succeeds(identity, known):
                return full
            self._surplus.add(identity.key_hash)
        self._sources[source] += 1
        if identity is not None:
            self._identities.setdefault(identity.key_hash, {})[peer.conn] = peer
        self._held[peer.conn] = peer
        return None

    def has_surplus(self, peer: Peer) -> bool:
        """Whether the identity of a connection has one beyond a limit."""
        return peer.identity is not None and peer.identity.key_hash in self._surplus

    def predecessor(self, peer: Peer) -> ConnectionId | None:
        """The connection that this one may replace: with an older certificate, from the same host if there is one."""
        if peer.identity is None:
            return None
        older = [
            other
            for other in self._identities.get(peer.identity.key_hash, {}).values()
            if other.identity is not None and other.identity.not_before < peer.identity.not_before
        ]
        return (
            min(older, key=lambda other: (other.address.host != peer.address.host, other.conn)).conn if older else None
        )

    def close(self, conn: ConnectionId) -> None:
        """Free the place of a closed connection, if it has one."""
        peer = self._held.pop(conn, None)
        if peer is None:
            return
        source = peer.address.source
        self._sources[source] -= 1
        if self._sources[source] == 0:
            del self._sources[source]
        if peer.identity is not None:
            key = peer.identity.key_hash
            del self._identities[key][conn]
            if not self._identities[key]:
                del self._identities[key]
            self._surplus.discard(key)
