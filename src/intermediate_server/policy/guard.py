"""Runs a policy so that nothing it does can harm the server: every failure is a denial.

A policy is somebody else's code on our event loop. It may raise, hang, answer nonsense or refuse to be cancelled.
The guard gives it a deadline and a bounded number of questions at a time, and turns the rest into an answer.
Only one thing is out of reach: code that blocks the loop instead of awaiting.
"""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from intermediate_server.policy.base import Allow, Candidate, Decision, Deny, Policy
from intermediate_server.types import Peer, Registration

MAX_RANK = 2**32 - 1


class Guard:
    """A policy with a deadline, made to answer.

    No method raises, save ``CancelledError`` when the caller itself is cancelled. Call :meth:`aclose` when the
    policy is no longer used.
    """

    def __init__(self, policy: Policy, *, deadline: float = 2.0, concurrency: int = 64) -> None:
        """``deadline`` in seconds, waiting for a free place included; ``concurrency`` places, at least 1.

        A call that ignores its cancellation keeps its place until it ends, so a policy that hangs for good ends
        in quick denials and not in an unbounded number of tasks.
        """
        self.policy = policy
        self._deadline = deadline
        self._places = asyncio.Semaphore(concurrency)
        self._running: set[asyncio.Task[object]] = set()

    async def authorize(self, registration: Registration) -> Decision:
        """The policy's decision, or a temporary ``Deny`` that says how the policy failed."""
        answer = await self._run(lambda: self.policy.authorize(registration))
        match answer:
            case Allow(valid_until=datetime(tzinfo=None)):
                return Deny("the policy answered a valid_until without time zone", "policy failure", temporary=True)
            case Allow() | Deny():
                return answer
            case _Failure(what):
                return Deny(f"the policy {what}", "policy failure", temporary=True)
            case _:
                kind = type(answer).__name__
                return Deny(f"the policy answered {kind} and not Allow or Deny", "policy failure", temporary=True)

    async def closed(self, peer: Peer, reason: str) -> str | None:
        """Tell the policy that a connection is gone; what went wrong, or None."""
        answer = await self._run(lambda: self.policy.on_closed(peer, reason))
        return f"the policy {answer.what}" if isinstance(answer, _Failure) else None

    def select(self, service: str, candidates: Sequence[Candidate]) -> tuple[tuple[Candidate, ...], str | None]:
        """The policy's choice of connectors, and what went wrong or None.

        When something went wrong no connector is chosen: a policy that excludes must not be bypassed by its own
        failure.
        """
        try:
            chosen = self.policy.select(service, tuple(candidates))
            return _checked(chosen, candidates), None
        except (Exception, SystemExit) as error:
            return (), f"the policy {_what(error)}"

    async def aclose(self, *, keep_policy: bool = False) -> None:
        """Cancel what still runs, and close the policy unless another guard has it; waits for neither for long."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=self._deadline)
        if not keep_policy:
            await self._run(self.policy.aclose)

    async def _run(self, call: Callable[[], object]) -> object:
        """What the call returns, or a ``_Failure``."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._deadline
        try:
            async with asyncio.timeout_at(end):
                await self._places.acquire()
        except TimeoutError:
            return _Failure(f"had no free place for {self._deadline:g} s")
        task = loop.create_task(_answer(call))
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            await asyncio.wait((task,), timeout=max(0.0, end - loop.time()))
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.done():
            return _Failure("was cancelled from within") if task.cancelled() else task.result()
        # Not awaited: it may refuse to end. Its place is taken until it does.
        task.cancel()
        return _Failure(f"did not answer within {self._deadline:g} s")

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        self._places.release()


class _Failure:
    """How a call failed, as the end of a sentence that begins with "the policy"."""

    __match_args__ = ("what",)
    __slots__ = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what


async def _answer(call: Callable[[], object]) -> object:
    # Wide on purpose: asyncio lets SystemExit of a task end the whole loop, and a panic in a native extension
    # is no Exception either.
    try:
        answer = call()
        return await answer if inspect.isawaitable(answer) else answer
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as error:
        return _Failure(_what(error))


def _what(error: BaseException) -> str:
    # The place and not the text: exception texts of HTTP and database clients carry credentials.
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"raised {type(error).__name__}{place}"


def _checked(answer: Iterable[object], candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    peers = {candidate.peer.conn: candidate.peer for candidate in candidates}
    chosen: list[Candidate] = []
    for item in answer:
        # pop: nothing twice, nothing invented, and an endless iterator ends here.
        if not isinstance(item, Candidate) or peers.pop(item.peer.conn, None) != item.peer:
            raise ValueError("select must return some of the candidates it was given, each once")
        if not 0 <= item.rank <= MAX_RANK:
            raise ValueError(f"rank {item.rank} is not in 0..{MAX_RANK}")
        chosen.append(item)
    return tuple(chosen)
