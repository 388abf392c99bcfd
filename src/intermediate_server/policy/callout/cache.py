"""Answers that may be used again: bounded in number and in time, with no clock of its own."""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime, timedelta

from intermediate_server.policy.base import Allow, Decision


class Cache:
    """Decisions by what was asked; the one unused for longest makes room."""

    def __init__(self, *, size: int, lifetime: timedelta) -> None:
        self._size = size
        self._lifetime = lifetime
        self._entries: OrderedDict[bytes, tuple[datetime, int, Decision]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, now: datetime) -> Decision | None:
        """The decision, if it may still be used. ``now`` is aware."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        end, _, decision = entry
        # One that seems to last longer than any may was put in before the clock was set back.
        if not now < end <= now + self._lifetime:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return decision

    def put(self, key: bytes, decision: Decision, now: datetime, *, asked: int) -> None:
        """Keep a decision, never beyond its own end: whoever is asked again at that moment must ask anew.

        ``asked`` grows with each question: an answer that comes late replaces none to a later question.
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
