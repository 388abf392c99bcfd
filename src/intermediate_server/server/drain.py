"""The drain: no new connections, a close for each live one, and the end within the grace time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from intermediate_server.admin import Status
from intermediate_server.engine import Command
from intermediate_server.engine.bridge import Bridge
from intermediate_server.sessions.dispatcher import Sessions
from intermediate_server.wire import close_codes

REASON = "server shutting down"

FLUSH = 0.3
"""Part of the grace time kept for the engine to send its last packets."""

_log = structlog.get_logger()


class Stopping:
    """Whether the server is to end, and whether at once. Belongs to one event loop."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()

    def ask(self) -> None:
        """End within the grace time; a second call ends without any wait."""
        if self.asked.is_set():
            self.hurry.set()
        self.asked.set()

    def at_once(self) -> None:
        """End without any wait: the engine has failed."""
        self.asked.set()
        self.hurry.set()


class Closeable(Protocol):
    """The part of an engine that the drain needs."""

    def close(self, timeout_ms: int) -> None: ...


async def drain(
    *,
    bridge: Bridge,
    engine: Closeable,
    sessions: Sessions,
    status: Status,
    grace: float,
    hurry: asyncio.Event,
    now: Callable[[], float],
) -> None:
    """Refuse new connections, close the live ones with code 0, stop the engine; at most ``grace`` seconds.

    ``hurry`` ends the wait at once, when the operator has asked a second time. ``now`` is a monotonic clock in seconds.
    """
    end = now() + grace
    status.accepting = False
    status.draining = True
    bridge.submit(Command.SetAccepting(False))
    count = sessions.close_all(close_codes.SHUTTING_DOWN, REASON)
    _log.info("Draining", connections=count, grace_s=grace)
    if count:
        await _first_of(sessions.wait_empty, hurry.wait, bridge.wait_failed, timeout=max(0.0, grace * (1 - FLUSH)))
    bridge.finish()
    # Waits in the engine's code; the loop goes on, and health reports the drain.
    await asyncio.to_thread(engine.close, 0 if hurry.is_set() else max(0, round((end - now()) * 1000)))
    bridge.drain_now()


async def _first_of(*waits: Callable[[], object], timeout: float) -> None:  # noqa: ASYNC109 - the grace time
    tasks = [asyncio.ensure_future(wait()) for wait in waits]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
