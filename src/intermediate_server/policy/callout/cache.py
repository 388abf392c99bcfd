"""A cache of answers, bounded in number and in time, without a clock of its own."""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime, timedelta

from intermediate_server.policy.base import Allow, Decision


class Cache:
    """Decisions by question; the least recently used makes room."""

    def __init__(self, *, size: int, lifetime: timedelta) -> None:
        self._size = size
        self._lifetime = lifetime
        self._entries: OrderedDict[bytes, tuple[datetime, int, Decision]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, now: datetime) -> Decision | None:
        """The decision while it may be reused, else None. ``now`` is aware."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        end, _, decision = entry
        # A rest longer than the longest lifetime means that the clock was set back.
        if not now < end <= now + self._lifetime:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return decision

    def put(self, key: bytes, decision: Decision, now: datetime, *, asked: int) -> None:
        """Keep a decision, but not beyond its own end, at which the service is asked anew.

        ``asked`` grows with each question: a late answer does not replace the answer to a later question.
        """
        end = now + self._lifetime
        if isinstance(decision, Allow) and decision.valid_until is not None:
            end = min(end, decision.valid_until)
        known = self._entries.get(key)
        if end <= now or (known is not None and known[1] > asked):
            return
        self._entries[key] = (end, asked, decision)
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)
