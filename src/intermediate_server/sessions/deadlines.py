"""Moments at which something ends, any number of them on one heap and one timer."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

LONGEST_WAIT = 30.0
"""Seconds between two looks at the clock, since a clock may be set and a machine may sleep."""

K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """Calls ``due`` for each key once its moment has passed. Belongs to one event loop.

    Moments are Unix times, since certificates end by the wall clock.
    """

    def __init__(self, due: Callable[[K], None], *, clock: Callable[[], float] = time.time) -> None:
        self._call = due
        self._clock = clock
        self._moments: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        """Moment, a number that settles ties, key; cancelled entries are skipped when they come up."""
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0.0

    def __len__(self) -> int:
        return len(self._moments)

    def set(self, key: K, moment: float) -> None:
        """Call for ``key`` at ``moment``, in place of any earlier moment of it."""
        self._moments[key] = moment
        self._number += 1
        heapq.heappush(self._heap, (moment, self._number, key))
        if len(self._heap) > 2 * len(self._moments) + 64:
            # Most connections end long before their certificates do.
            self._heap = [entry for entry in self._heap if self._moments.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)
        if self._timer is None or moment < self._armed:
            self._arm()

    def cancel(self, key: K) -> None:
        """Cancel the moment of a key, if it has one."""
        self._moments.pop(key, None)

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self.stop()
        if not self._heap:
            return
        now = self._clock()
        wait = min(max(0.0, self._heap[0][0] - now), LONGEST_WAIT)
        self._armed = now + wait
        self._timer = asyncio.get_running_loop().call_later(wait, self._fire)

    def _fire(self) -> None:
        self._timer = None
        try:
            while self._heap and self._heap[0][0] <= self._clock():
                moment, _, key = heapq.heappop(self._heap)
                if self._moments.get(key) == moment:
                    del self._moments[key]
                    self._call(key)
        finally:
            self._arm()
