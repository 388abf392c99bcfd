"""Notices changes of files by looking at them three times a second: a revocation is to be in force within one.

Looking works on every file system, and sees the renames by which careful programs replace a file. A change counts once
the file has stayed the same for one more look, so that no half-written file is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

INTERVAL = 0.3
"""Seconds between two looks."""

Signature = tuple[int, int, int] | None
"""Inode, size and time of change; None for a file without access."""


class Watch:
    """Calls ``changed`` when one of the files of ``paths`` has changed since the last :meth:`take`."""

    def __init__(self, paths: Callable[[], Iterable[Path]], changed: Callable[[], Awaitable[object]]) -> None:
        self._paths = paths
        self._changed = changed
        self._seen: dict[Path, Signature] = {}

    def take(self) -> None:
        """Remember the files as they are, before they are read. May be called on another thread."""
        self._seen = _look(self._paths())

    async def run(self) -> None:
        """Look until cancelled; ``changed`` is to call :meth:`take` before it reads."""
        last = self._seen
        while True:
            await asyncio.sleep(INTERVAL)
            now = await asyncio.to_thread(_look, self._paths())
            # A newly named file was read a moment ago.
            if now == last and any(now[path] != self._seen.setdefault(path, now[path]) for path in now):
                await self._changed()
            last = now


def _look(paths: Iterable[Path]) -> dict[Path, Signature]:
    return {path: _signature(path) for path in paths}


def _signature(path: Path) -> Signature:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
