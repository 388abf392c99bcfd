"""SIGHUP from the first instant of a program: one that comes before the program can reload is remembered."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Its import takes longer than a signal may wait.
    import asyncio

_held: list[int] = []


def hold() -> None:
    """Remember a SIGHUP until :func:`deliver` takes over."""
    with suppress(ValueError):  # not the main thread, whose owner decides about signals
        signal.signal(signal.SIGHUP, lambda number, _: _held.append(number))


def deliver(loop: asyncio.AbstractEventLoop, reload: Callable[[], None]) -> None:
    """Call ``reload`` on the loop for each SIGHUP, and now if one was held."""
    loop.add_signal_handler(signal.SIGHUP, reload)
    if _held:
        _held.clear()
        reload()
