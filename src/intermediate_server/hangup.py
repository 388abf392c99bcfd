"""SIGHUP from the first instant of a program that reloads by it: until it can, one is remembered and ends nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # It takes longer to import than a signal may have to wait.
    import asyncio

_held: list[int] = []


def hold() -> None:
    """Remember a SIGHUP until :func:`deliver` takes over."""
    with suppress(ValueError):  # not the main thread: whoever has it decides about signals
        signal.signal(signal.SIGHUP, lambda number, _: _held.append(number))


def deliver(loop: asyncio.AbstractEventLoop, reload: Callable[[], None]) -> None:
    """Call ``reload`` on the loop for each SIGHUP, and now if one was held."""
    loop.add_signal_handler(signal.SIGHUP, reload)
    if _held:
        _held.clear()
        reload()
