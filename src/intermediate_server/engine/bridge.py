"""The bridge between the engine's thread and asyncio: events in, one batch of commands out for each wake-up.

No engine thread ever calls into the interpreter. It rings an eventfd; the loop drains the waiting events, hands each to
``dispatch`` and applies the handlers' commands as one batch. A batch is applied as a whole between two datagrams, so a
route and the ACK that announces it can never be seen in the other order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from intermediate_server.engine import Command, EngineError, Event
from intermediate_server.engine.lag import LoopLag
from intermediate_server.engine.watchdog import Watchdog

MOST_LAG = 5.0
"""Seconds of the loop's lag with which nothing works any more."""

MAX_EVENTS = 512
"""Events taken at one wake-up, so that timers and HTTP are served between two bursts."""

_log = structlog.get_logger()


class EngineLike(Protocol):
    """The part of an engine that the bridge needs; the tests' engine has it too."""

    def fileno(self) -> int: ...
    def drain(self, maximum: int, /) -> list[Event]: ...
    def apply(self, commands: Sequence[Command], /) -> None: ...
    def counters(self) -> dict[str, int]: ...


class Bridge:
    """Feeds events to ``dispatch`` and commands to the engine. Belongs to one event loop."""

    def __init__(self, engine: EngineLike, *, lag: LoopLag | None = None) -> None:
        self._engine = engine
        self._dispatch: Callable[[Event], None] = _ignore
        self._batch: list[Command] = []
        self._draining = False
        self._finished = False
        self._scheduled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failed: asyncio.Future[str] | None = None
        self._next_error_log = 0.0
        self._errors_unlogged = 0
        self.lag = lag if lag is not None else LoopLag()
        self.watchdog = Watchdog(lambda: engine.counters()["ticks"], self._fail)
        self.dispatch_errors = 0
        """Events whose handler raised."""

    @property
    def turning(self) -> bool:
        """Whether the engine's thread and the loop both go on."""
        return self.watchdog.turning and self.lag.last < MOST_LAG

    def start(self, dispatch: Callable[[Event], None]) -> None:
        """Watch the engine on the running loop and hand each event to ``dispatch``."""
        self._dispatch = dispatch
        self._loop = asyncio.get_running_loop()
        self._failed = self._loop.create_future()
        self._loop.add_reader(self._engine.fileno(), self._wake)
        self.lag.start()
        self.watchdog.start()

    def stop(self) -> None:
        """Stop watching; submitted commands are applied first. Safe to repeat."""
        if self._loop is None:
            return
        self._flush()
        self._loop.remove_reader(self._engine.fileno())
        self.lag.stop()
        self.watchdog.stop()
        self._loop = None

    def submit(self, *commands: Command) -> None:
        """Queue commands, kept together and in order.

        Commands submitted during the dispatch of events leave in one batch at the end of the wake-up, others at the end
        of the current turn of the loop.
        """
        self._batch.extend(commands)
        if self._draining or self._scheduled or self._loop is None:
            return
        self._scheduled = True
        self._loop.call_soon(self._flush)

    async def wait_failed(self) -> str:
        """Wait until the engine cannot go on; returns why."""
        if self._failed is None:
            raise RuntimeError("the bridge has not been started")
        return await asyncio.shield(self._failed)

    def finish(self) -> None:
        """Apply the submitted commands now, and none after them: whoever calls this is about to close the engine."""
        self._flush()
        self._finished = True

    def drain_now(self) -> None:
        """Dispatch the waiting events without the loop: the last ones of a closed engine."""
        while (self._failed is None or not self._failed.done()) and self._wake():
            pass

    def _wake(self) -> int:
        """Dispatch one load of events; returns its size."""
        try:
            events = self._engine.drain(MAX_EVENTS)
        except BaseException as error:  # a panic of the engine is a BaseException; left alone, the reader would spin
            self._fail(f"reading events failed: {error}")
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            return 0
        self._draining = True
        try:
            for event in events:
                if type(event) is Event.Failed:
                    self._fail(event.reason)
                    break
                try:
                    self._dispatch(event)
                except (KeyboardInterrupt, SystemExit):
                    raise
                except BaseException as error:
                    self._report(event, error)
        finally:
            self._draining = False
            self._flush()
        return len(events)

    def _flush(self) -> None:
        self._scheduled = False
        batch, self._batch = self._batch, []
        if not batch or self._finished:
            return
        try:
            self._engine.apply(batch)
        except EngineError as error:
            self._fail(f"the engine takes no commands: {error}")

    def _fail(self, reason: str) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._engine.fileno())
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(reason)

    def _report(self, event: Event, error: BaseException) -> None:
        """Log a handler's failure, at most one traceback a second: a peer may be able to repeat it."""
        self.dispatch_errors += 1
        self._errors_unlogged += 1
        now = asyncio.get_running_loop().time()
        if now < self._next_error_log:
            return
        self._next_error_log = now + 1.0
        _log.error(
            "Event handler failed",
            event_type=type(event).__name__,
            failures=self._errors_unlogged,
            exc_info=error,
        )
        self._errors_unlogged = 0


def _ignore(_: Event) -> None:
    """The handler of events before the start."""
