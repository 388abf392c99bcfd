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
    """The number of connections of each identity and source. A closing connection keeps its place until it is gone."""

    def __init__(self, *, per_source: int, per_identity: int) -> None:
        self._per_source = per_source
        self._per_identity = per_identity
        self._held: dict[ConnectionId, tuple[str, ...]] = {}
        self._counts: Counter[str] = Counter()

    def take(self, peer: Peer) -> str | None:
        """Take a place; returns None, or a sentence for the peer that says which limit is reached.

        A connection counts by its first address even after a move, or moving would free a place.
        """
        source = peer.address.source
        identity = None if peer.identity is None else peer.identity.key_hash.hex()
        if identity is not None and self._counts[identity] >= self._per_identity:
            return f"{self._per_identity} connections of this identity are open, the most allowed"
        if self._counts[source] >= self._per_source:
            return f"{self._per_source} connections from this network are open, the most allowed"
        held = (source,) if identity is None else (source, identity)
        self._counts.update(held)
        self._held[peer.conn] = held
        return None

    def close(self, conn: ConnectionId) -> None:
        """Free the place of a closed connection, if it has one."""
        for key in self._held.pop(conn, ()):
            self._counts[key] -= 1
            if self._counts[key] == 0:
                del self._counts[key]
