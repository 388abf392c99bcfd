"""Delays between tries to connect."""

from __future__ import annotations

import random


class Backoff:
    """Delays that double from ``first`` to ``most`` seconds, each shortened at random by up to half.

    The jitter spreads the clients of a relay that came back; the low maximum brings each back soon.
    """

    def __init__(self, *, first: float = 0.25, most: float = 1.5) -> None:
        self._first = first
        self._most = most
        self._next = first

    def delay(self) -> float:
        """Seconds to wait now."""
        delay, self._next = self._next, min(self._most, self._next * 2)
        return delay * random.uniform(0.5, 1.0)  # noqa: S311  spreads load, guards nothing

    def reset(self) -> None:
        """Begin again after a success."""
        self._next = self._first
