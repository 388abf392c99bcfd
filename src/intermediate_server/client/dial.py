"""Dialling a relay at all its addresses: until one answers, or until all have failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from intermediate_server.client.backoff import Backoff
from intermediate_server.client.connection import Connection
from intermediate_server.errors import ConnectError

STAGGER = 0.25
"""Seconds between the first tries at each address of a relay (RFC 8305 section 5)."""
PATIENCE = 1.0
"""Seconds between two tries at one address, or a slow relay would get a handshake from each."""
LOOK_UP = 1.0
"""Seconds between two look-ups of its name."""
MAX_TRIES_AT_ONCE = 16
FIRST_REST, LONGEST_REST = 1.0, 30.0
"""Seconds without a try at an address that refuses us; they double from the first to the longest."""

Remote = tuple[str, int]
Connect = Callable[[Remote], Coroutine[Any, Any, Connection]]
T = TypeVar("T")


async def race(connect: Callable[[Remote], Coroutine[Any, Any, T]], addresses: Sequence[Remote]) -> T:
    """The first connection to be made, or answer to be had, at one of several addresses.

    Each try begins when the one before has failed or is late. Raises ``ConnectError`` with every reason when all have
    failed.
    """
    waiting = list(addresses)
    tries: set[asyncio.Task[T]] = set()
    errors: list[ConnectError] = []
    try:
        while waiting or tries:
            if waiting:
                tries.add(asyncio.create_task(connect(waiting.pop(0))))
            timeout = STAGGER if waiting else None
            done, _ = await asyncio.wait(tries, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                tries.remove(task)
                try:
                    return task.result()
                except ConnectError as error:
                    errors.append(error)
    finally:
        give_up(tries)
    causes = {error.cause for error in errors}
    text = "; ".join(dict.fromkeys(map(str, errors)))
    raise ConnectError(text, cause=causes.pop() if len(causes) == 1 else "other")


def give_up(tries: Collection[asyncio.Task[Any]]) -> None:
    """End the remaining tries, and close a connection that one of them has made."""
    for task in tries:
        if not task.cancel():
            with suppress(ConnectError, asyncio.CancelledError):
                made = task.result()
                if isinstance(made, Connection):
                    made.abandon()


@dataclass(slots=True)
class _Rest:
    """An address that refused us, and the end of its rest."""

    backoff: Backoff = field(default_factory=lambda: Backoff(first=FIRST_REST, most=LONGEST_REST))
    until: float = 0.0


class Dialler:
    """Tries a relay's addresses until one answers; an address that refuses us rests longer each time.

    Tries overlap: a slow path gets the whole handshake timeout, and the next try finds a relay that comes back within
    two seconds, even at another address. The addresses of the last look-up are tried while the next one is under way or
    fails: a relay may be reachable when no name server is.
    """

    def __init__(
        self, connect: Connect, look_up: Callable[[], Coroutine[Any, Any, list[Remote]]], failed: Callable[[str], None]
    ) -> None:
        """``failed`` is called with the reason of each failed try and look-up."""
        self.known: list[Remote] = []
        self._connect = connect
        self._find = look_up
        self._failed = failed
        self._rests: dict[Remote, _Rest] = {}

    def refused(self, address: Remote) -> None:
        """Let an address rest, after its relay has ended the connection without a registration."""
        rest = self._rests.setdefault(address, _Rest())
        rest.until = asyncio.get_running_loop().time() + rest.backoff.delay()

    def served(self, address: Remote) -> None:
        """Note that a registration there has held: the next refusal counts as the first one."""
        self._rests.pop(address, None)

    async def dial(self) -> tuple[Connection, Remote]:
        """Connect; returns the connection and its address."""
        backoff = Backoff()
        looking = asyncio.create_task(self._look_up())
        tries: dict[asyncio.Task[Connection], Remote] = {}
        number = 0
        try:
            while True:
                if looking.done():
                    looking.result()
                    looking = asyncio.create_task(self._look_up(pause=LOOK_UP))
                    number = 0
                ready = [address for address in self.known if self._rest(address) <= 0]
                if ready:
                    if len(tries) == MAX_TRIES_AT_ONCE:
                        oldest = next(iter(tries))
                        del tries[oldest]
                        oldest.cancel()
                    address = ready[number % len(ready)]
                    tries[asyncio.create_task(self._connect(address))] = address
                    number += 1
                # Each address has its turn within the delay, since only the second one may work.
                first_round = number < len(ready)
                pause = max(backoff.delay(), PATIENCE if tries else 0.0)
                delay = STAGGER if first_round else max(STAGGER, pause / max(1, len(ready)))
                if self.known and not ready:
                    delay = self._shortest_rest()
                answered = await self._first(tries, looking, delay, until_failed=first_round)
                if answered is not None:
                    return answered
        finally:
            looking.cancel()
            give_up(tries)

    async def _first(
        self,
        tries: dict[asyncio.Task[Connection], Remote],
        looking: asyncio.Task[None],
        delay: float,
        *,
        until_failed: bool,
    ) -> tuple[Connection, Remote] | None:
        """The first successful try, None when other addresses are known or ``delay`` ends first; removes failed tries.

        With ``until_failed`` it also ends when no try is left.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + delay
        while not looking.done() and (left := end - loop.time()) > 0 and not (until_failed and not tries):
            done, _ = await asyncio.wait([*tries, looking], timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in tries if task in done]:
                address = tries.pop(task)
                try:
                    return task.result(), address
                except ConnectError as error:
                    if error.answered:
                        self.refused(address)
                    self._failed(str(error))
        return None

    async def _look_up(self, *, pause: float = 0.0) -> None:
        """Look the name up until its addresses differ from the known ones."""
        while True:
            await asyncio.sleep(max(pause, self._shortest_rest()))
            pause = LOOK_UP
            try:
                found = await self._find()
            except ConnectError as error:
                self._failed(str(error))
            else:
                if set(found) != set(self.known):
                    self.known[:] = found
                    self._rests = {address: rest for address, rest in self._rests.items() if address in found}
                    return

    def _rest(self, address: Remote) -> float:
        """Seconds of rest that an address still has."""
        rest = self._rests.get(address)
        return 0.0 if rest is None else rest.until - asyncio.get_running_loop().time()

    def _shortest_rest(self) -> float:
        return max(0.0, min(map(self._rest, self.known), default=0.0))
