"""The lag of the event loop."""

from __future__ import annotations

import asyncio
from bisect import bisect_left

BUCKETS: tuple[float, ...] = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds in seconds; a twelfth, open bucket holds the rest."""


class LoopLag:
    """Measures how late a timer fires: any event of the engine had to wait as long.

    One sample each ``interval`` seconds, kept as a histogram so that a scrape cannot miss a peak between two
    others.
    """

    def __init__(self, *, interval: float = 0.1) -> None:
        self._interval = interval
        self._handle: asyncio.TimerHandle | None = None
        self._due = 0.0
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0
        self.last = 0.0

    def start(self) -> None:
        """Begin measuring on the running loop."""
        self._arm(asyncio.get_running_loop())

    def stop(self) -> None:
        """Stop measuring; the samples stay."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def observe(self, seconds: float) -> None:
        """Add one sample; a negative one counts as none."""
        seconds = max(0.0, seconds)
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds
        self.last = seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """The histogram as Prometheus counts it: the number of samples up to each bound."""
        out: list[tuple[str, float]] = []
        running = 0
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self.counts, strict=True):
            running += count
            out.append((bound, float(running)))
        return out

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + self._interval
        self._handle = loop.call_at(self._due, self._fire, loop)

    def _fire(self, loop: asyncio.AbstractEventLoop) -> None:
        self.observe(loop.time() - self._due)
        self._arm(loop)
