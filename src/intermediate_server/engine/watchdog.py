"""The watchdog of the engine's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

INTERVAL = 1.0
"""Seconds between two looks; the thread counts four ticks in that time."""

SUSPECT = 2
"""Looks without a tick after which the server is not ready any more."""

LIMIT = 5
"""Looks without a tick after which the thread counts as stuck for good."""


class Watchdog:
    """Calls ``stuck`` with a reason once the engine's thread has made no tick for ``LIMIT`` looks in a row.

    Looks are counted and not seconds: a process that was stopped for an hour has looked once.
    Belongs to one event loop.
    """

    def __init__(self, ticks: Callable[[], int], stuck: Callable[[str], None], *, interval: float = INTERVAL) -> None:
        """``ticks`` reads the engine's counter; ``interval`` is in seconds."""
        self._ticks = ticks
        self._stuck = stuck
        self._interval = interval
        self._last = -1
        self._missed = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def turning(self) -> bool:
        """Whether the thread has made a tick lately."""
        return self._missed < SUSPECT

    def start(self) -> None:
        """Begin to look, on the running loop."""
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        ticks = self._ticks()
        self._missed = 0 if ticks != self._last else self._missed + 1
        self._last = ticks
        if self._missed < LIMIT:
            self.start()
        else:
            self._stuck(f"its thread has made no turn for {LIMIT * self._interval:g} s")
