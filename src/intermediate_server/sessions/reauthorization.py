"""Re-authorization: a bounded number of workers asks the policy again about registrations, within a bounded time.

A reload asks about all of them. The next reload does not wait until the policy has answered, and disconnects at once
each peer that it revokes. A registration about which the policy could not be asked in time is revoked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from intermediate_server.policy import REAUTHORIZATIONS
from intermediate_server.sessions.session import Session, Spawn
from intermediate_server.types import Role

WITHIN = 30.0
"""Seconds for asking the policy about a session that is to be re-authorized."""

AT_ONCE = 200
"""Sessions asked about before the loop serves others, with a policy that answers without waiting."""


@dataclass(frozen=True, slots=True)
class Reauthorization:
    """One session to be re-authorized."""

    session: Session
    cause: str
    """For counters and the audit log, should a registration end by it."""
    ends: float
    """By the loop's clock; registrations not asked about until then are revoked."""
    only: frozenset[tuple[Role, str]] | None = None
    """The registrations to ask about; None for all."""
    batch: _Batch | None = None
    """The batch that this session is part of."""


class _Batch:
    """A re-authorization of all sessions: those still to come, and the number of registrations it has ended."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.lost = 0
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(self.lost)


class Reauthorizations:
    """The sessions that wait to be re-authorized, each in the queue once, and the workers."""

    def __init__(
        self,
        *,
        reauthorize: Callable[[Reauthorization], Awaitable[int]],
        reauthorized: Callable[[Session], None],
        spawn: Spawn,
    ) -> None:
        """``reauthorize`` asks, carries the answers out and returns how many registrations ended; it must not raise.

        ``reauthorized`` is called for each session afterwards.
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
        """Re-authorize a session soon. If it waits already it keeps its deadline, or a peer could put it off."""
        conn = session.peer.conn
        waiting = self._waiting.get(conn)
        if waiting is None:
            ends = asyncio.get_running_loop().time() + WITHIN
            self._waiting[conn] = Reauthorization(session, cause, ends, only)
            # The worker that has the session now takes it up again.
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
        """Use all workers, since this policy's answers have to be awaited."""
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
        # Here and not when the task is done: a session that is added in between needs another worker.
        self._tasks.difference_update([asyncio.current_task()])

    def _take(self) -> Reauthorization | None:
        for conn in self._waiting:
            if conn not in self._under_way:
                return self._waiting.pop(conn)
        return None

    def _finish(self, reauthorization: Reauthorization, lost: int) -> None:
        self._untold.append(reauthorization.session)
        # Closing is work of its own: with a policy that decides at once, all routes end before the first connection.
        if self.workers > 1 or not self._waiting:
            for session in self._untold:
                self._reauthorized(session)
            self._untold.clear()
        if reauthorization.batch is None or self._batch is None:
            return
        # A session that was under way when the batch began counts as well: it too ends by the new policy.
        self._batch.lost += lost
        reauthorization.batch.left -= 1
        if reauthorization.batch.left == 0:
            reauthorization.batch.end()
