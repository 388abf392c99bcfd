"""Runs a policy so that nothing it does can harm the server: every failure is a denial.

A policy is somebody else's code on our event loop. It may raise, hang, answer nonsense or refuse to be cancelled. The
guard gives it a deadline and a bounded number of questions at a time, and turns failures into denials. New
registrations, re-authorizations and closed connections have places of their own, so that a flood of one kind denies
nothing of another. The guard cannot stop code that blocks the loop instead of awaiting.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from intermediate_server.policy.base import Allow, Candidate, Decision, Deny, Limits, Policy, speaks_for_authorize
from intermediate_server.types import Peer, Registration

MAX_RANK = 2**32 - 2
MAX_LIMIT = 2**63 - 1

REAUTHORIZATIONS = 32
"""Most concurrent questions about grants."""


class Guard:
    """A policy with a deadline, which always gets an answer from it.

    No method raises, save ``CancelledError`` when the caller itself is cancelled. Call :meth:`aclose` when the
    policy is no longer used.
    """

    def __init__(self, policy: Policy, *, deadline: float = 2.0, concurrency: int | None = None) -> None:
        """``deadline`` in seconds, waiting for a free place included except for a re-authorization; ``concurrency``
        places, at least 1, the policy's own number by default, and half as many for re-authorizations.

        A call that ignores its cancellation keeps its place until it ends, so a policy that hangs for good ends
        in quick denials and not in an unbounded number of tasks.
        """
        self.policy = policy
        self._deadline = deadline
        places = policy.concurrency if concurrency is None else concurrency
        self._places = asyncio.Semaphore(places)
        self._reauthorization_places = asyncio.Semaphore(max(1, min(places // 2, REAUTHORIZATIONS)))
        self._closed_places = asyncio.Semaphore(places)
        self._running: set[asyncio.Task[object]] = set()

    @property
    def decides(self) -> bool:
        """Whether :meth:`decide` speaks for the policy; if not, only :meth:`authorize` does."""
        return speaks_for_authorize(self.policy, "decide")

    @property
    def decides_by_source(self) -> bool:
        """Whether an answer may depend on the address of a peer."""
        return self.policy.decides_by_source or not speaks_for_authorize(self.policy, "decides_by_source")

    @property
    def selects(self) -> bool:
        """Whether the policy chooses among the connectors of a service."""
        return type(self.policy).select is not Policy.select

    @property
    def hears_closed(self) -> bool:
        """Whether the policy wants to know of closed connections."""
        return type(self.policy).on_closed is not Policy.on_closed

    async def authorize(self, registration: Registration) -> Decision:
        """The policy's decision, or a temporary ``Deny`` that says how the policy failed."""
        return _decision(await self._run(lambda: self.policy.authorize(registration), self._places))

    def decide(self, registration: Registration) -> Decision | None:
        """The policy's decision at once, or a temporary ``Deny`` that says how it failed; None to ask it and wait."""
        answer: object
        try:
            answer = self.policy.decide(registration)
        except BaseException as error:
            # Nothing here awaits, so even a cancellation is the policy's own.
            answer = _Failure(what_raised(error))
        return None if answer is None else _decision(answer)

    async def reauthorize(self, registration: Registration) -> Decision | None:
        """The decision about a grant; None when no place was free to ask the policy."""
        answer = await self._run(lambda: self.policy.authorize(registration), self._reauthorization_places, whole=True)
        return None if isinstance(answer, _Failure) and answer.busy else _decision(answer)

    async def closed(self, peer: Peer, reason: str) -> str | None:
        """Notify the policy of a closed connection; returns the problem, or None."""
        answer = await self._run(lambda: self.policy.on_closed(peer, reason), self._closed_places)
        return f"the policy {answer.what}" if isinstance(answer, _Failure) else None

    def select(self, service: str, candidates: Sequence[Candidate]) -> tuple[tuple[Candidate, ...], str | None]:
        """The policy's choice of connectors, and the problem or None.

        A failure chooses no connector: a policy that excludes must not be bypassed by its own failure.
        """
        try:
            chosen = self.policy.select(service, tuple(candidates))
            return _checked(chosen, candidates), None
        except BaseException as error:
            # Nothing here awaits, so even a cancellation is the policy's own.
            return (), f"the policy {what_raised(error)}"

    async def aclose(self, *, keep_policy: bool = False) -> None:
        """Cancel running questions, and close the policy unless another guard has it; each wait is bounded."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=self._deadline)
        if not keep_policy:
            await self._run(self.policy.aclose, self._closed_places)

    async def _run(self, call: Callable[[], object], places: asyncio.Semaphore, *, whole: bool = False) -> object:
        """The result of the call, or a ``_Failure``; with ``whole`` the wait for a place takes none of its time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._deadline
        try:
            async with asyncio.timeout_at(end):
                await places.acquire()
        except TimeoutError:
            return _Failure(f"had no free place for {self._deadline:g} s", busy=True)
        if whole:
            end = loop.time() + self._deadline
        task = loop.create_task(_answer(call))
        self._running.add(task)
        task.add_done_callback(lambda task: self._ended(task, places))
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

    def _ended(self, task: asyncio.Task[object], places: asyncio.Semaphore) -> None:
        self._running.discard(task)
        places.release()


class _Failure:
    """How a call failed, as the end of a sentence that begins with "the policy"; ``busy`` when it was not made."""

    __slots__ = ("busy", "what")

    def __init__(self, what: str, *, busy: bool = False) -> None:
        self.what = what
        self.busy = busy


async def _answer(call: Callable[[], object]) -> object:
    # Wide on purpose: SystemExit and KeyboardInterrupt of a task end the whole loop, and a panic in a native extension
    # is no Exception either. A real interrupt arrives as a signal or as a cancellation.
    try:
        answer = call()
        return await answer if inspect.isawaitable(answer) else answer
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return _Failure(what_raised(error))


def _decision(answer: object) -> Decision:
    """The answer if it is well-formed; else a temporary ``Deny``, since nothing after the guard checks it."""
    try:
        match answer:
            case _Failure():
                problem = answer.what
            case Allow() | Deny():
                flaw = _flaw(answer)
                if flaw is None:
                    return answer
                problem = f"answered {flaw}"
            case _:
                problem = f"answered {type(answer).__name__} and not Allow or Deny"
    except Exception as error:
        problem = f"answered what {what_raised(error)}"
    return Deny(f"the policy {problem}", "policy failure", temporary=True)


def _flaw(decision: Decision) -> str | None:
    # Any: the annotations are not to be trusted here.
    rule: Any = decision.rule
    if not isinstance(rule, str):
        return "a rule that is no text"
    if isinstance(decision, Deny):
        reason: Any = decision.reason
        temporary: Any = decision.temporary
        whole = isinstance(reason, str) and isinstance(temporary, bool)
        return None if whole else "a Deny whose reason is no text, or whose temporary is not true or false"
    limits: Any = decision.limits
    if not isinstance(limits, Limits):
        return "limits that are no Limits"
    numbers = (limits.bytes_per_second, limits.packets_per_second, limits.bytes_per_month, limits.connections)
    if not all(number is None or (type(number) is int and 1 <= number <= MAX_LIMIT) for number in numbers):
        return "limits that are not whole numbers of at least 1"
    direct: Any = decision.direct
    if not isinstance(direct, bool):
        return "a direct that is not true or false"
    until: Any = decision.valid_until
    if until is None:
        return None
    if not isinstance(until, datetime):
        return "a valid_until that is no datetime"
    if until.utcoffset() is None:
        return "a valid_until without time zone"
    until.timestamp()
    return None


def what_raised(error: BaseException) -> str:
    """Type and place of an exception, as the end of a sentence about the code that raised it.

    Its text is left out: those of HTTP and database clients carry credentials.
    """
    file, line = None, None
    # Not by way of traceback, which reads the source files each time.
    step = error.__traceback__
    while step is not None:
        file, line = step.tb_frame.f_code.co_filename, step.tb_lineno
        step = step.tb_next
    if isinstance(error, SyntaxError):
        file, line = error.filename, error.lineno
    place = f" at {file.rpartition('/')[2]}:{line}" if file else ""
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
