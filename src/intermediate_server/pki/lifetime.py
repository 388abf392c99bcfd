"""Reminders of the end of certificates."""

from __future__ import annotations

from datetime import date, datetime, timedelta

SOON = timedelta(days=30)
"""The time before the end of a certificate in which reminders are due; of a short life its last quarter."""
MOST_REMINDERS = 10_000
"""Identities reminded in one day."""


def days_left(not_before: datetime, not_after: datetime, now: datetime) -> int | None:
    """Whole days until a certificate ends, from 0; None when it has ended or that is not soon."""
    left, soon = not_after - now, min(SOON, (not_after - not_before) / 4)
    return left.days if timedelta(0) < left <= soon else None


class Reminders:
    """Reminds of each key's certificate once a day."""

    def __init__(self) -> None:
        self._day: date | None = None
        self._reminded: set[bytes] = set()

    def due(self, key_hash: bytes, not_before: datetime, not_after: datetime, now: datetime) -> int | None:
        """The days left to the certificate of a key, if a reminder is due."""
        left = days_left(not_before, not_after, now)
        if now.date() != self._day:
            self._day = now.date()
            self._reminded.clear()
        if left is None or key_hash in self._reminded or len(self._reminded) >= MOST_REMINDERS:
            return None
        self._reminded.add(key_hash)
        return left
