"""Re-authorization: what is registered is asked about again, by a bounded number of workers and within a bounded time.

After a reload that is everything. However long the policy takes over it, the next reload does not wait, and whom that
one revokes is disconnected at once. What the policy cannot be asked about in time is granted no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from intermediate_server.policy import REAUTHORIZATIONS
from intermediate_server.sessions.session import Session, Spawn
from intermediate_server.types import Role

WITHIN = 30.0
"""Seconds in which the policy must have been asked about what is to be re-authorized."""

AT_ONCE = 200
"""Sessions looked at before others get the loop, when a policy answers without waiting."""


@dataclass(frozen=True, slots=True)
class Reauthorization:
    """A session about whose registrations the policy is to be asked."""

    session: Session
    cause: str
    """For counters and the audit log, should a registration end by it."""
    ends: float
    """By the loop's clock; what has not been asked about until then is revoked."""
    only: frozenset[tuple[Role, str]] | None = None
    """Some of its registrations; None for all."""
    batch: _Batch | None = None
    """The re-authorization of all sessions that it is part of."""


class _Batch:
    """A re-authorization of all sessions: what is left of it and how many registrations it has ended."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.lost = 0
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(self.lost)


class Reauthorizations:
    """The sessions that wait to be re-authorized, each once however often that is asked for, and the workers."""

    def __init__(
        self,
        *,
        reauthorize: Callable[[Reauthorization], Awaitable[int]],
        reauthorized: Callable[[Session], None],
        spawn: Spawn,
    ) -> None:
        """``reauthorize`` asks, carries out, and returns how many registrations ended; it must not raise.

        ``reauthorized`` is called afterwards, of one session or of many together.
        """
        self._reauthorize = reauthorize
        self._reauthorized = reauthorized
        self._spawn = spawn
        self._waiting: dict[int, Reauthorization] = {}
        self._under_way: set[int] = set()
        self._untold: list[Session] = []
        self._batch: _Batch | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.workers = REAUTHORIZATIONS
        """Sessions re-authorized concurrently; 1 where the policy answers at once."""

    def add(self, session: Session, *, cause: str, only: frozenset[tuple[Role, str]] | None = None) -> None:
        """Re-authorize a session soon. One that waits already keeps its time, or a peer could put it off."""
        conn = session.peer.conn
        waiting = self._waiting.get(conn)
        if waiting is None:
            ends = asyncio.get_running_loop().time() + WITHIN
            self._waiting[conn] = Reauthorization(session, cause, ends, only)
            # One that is under way is taken up by who has it now.
            self._work_on(conn not in self._under_way)
        elif waiting.only is not None:
            self._waiting[conn] = replace(waiting, only=None if only is None else waiting.only | only)

    def add_all(self, sessions: Iterable[Session], *, cause: str) -> asyncio.Future[int]:
        """Re-authorize all of these, in place of a batch under way; the result is how many registrations ended."""
        ends = asyncio.get_running_loop().time() + WITHIN
        chosen = list(sessions)
        if self._batch is not None:
            self._batch.end()
        self._batch = made = _Batch(len(chosen))
        self._waiting.update(
            {session.peer.conn: Reauthorization(session, cause, ends, batch=made) for session in chosen}
        )
        if not chosen:
            made.end()
        self._work_on(len(chosen))
        return made.done

    def widen(self) -> None:
        """Re-authorize as many sessions concurrently as there may be, since an answer has to be waited for."""
        if self.workers < REAUTHORIZATIONS:
            self.workers = REAUTHORIZATIONS
            self._work_on(len(self._waiting))

    def stop(self) -> None:
        """Cancel everything."""
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        if self._batch is not None:
            self._batch.end()

    def _work_on(self, more: int) -> None:
        for _ in range(min(more, self.workers - len(self._tasks))):
            self._tasks.add(self._spawn(self._work()))

    async def _work(self) -> None:
        count = 0
        while (reauthorization := self._take()) is not None:
            conn = reauthorization.session.peer.conn
            self._under_way.add(conn)
            lost = await self._reauthorize(reauthorization)
            self._under_way.discard(conn)
            self._finish(reauthorization, lost)
            count += 1
            if count % AT_ONCE == 0:
                await asyncio.sleep(0)
        # Here and not once the task is done: what is added until then needs another.
        self._tasks.difference_update([asyncio.current_task()])

    def _take(self) -> Reauthorization | None:
        for conn in self._waiting:
            if conn not in self._under_way:
                return self._waiting.pop(conn)
        return None

    def _finish(self, reauthorization: Reauthorization, lost: int) -> None:
        self._untold.append(reauthorization.session)
        # Closing makes work of its own: where all is decided at once, all routes go before the first connection does.
        if self.workers > 1 or not self._waiting:
            for session in self._untold:
                self._reauthorized(session)
            self._untold.clear()
        if reauthorization.batch is None or self._batch is None:
            return
        # A session that was under way when the batch began ends by the new policy too.
        self._batch.lost += lost
        reauthorization.batch.left -= 1
        if reauthorization.batch.left == 0:
            reauthorization.batch.end()
