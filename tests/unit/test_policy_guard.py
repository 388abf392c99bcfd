"""Whatever a policy does is a decision, and never the end of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo

import pytest
from tests.unit.registering import peer, wanted
from typing_extensions import override

from intermediate_server.policy import (
    Allow,
    Candidate,
    CertificatePolicy,
    Decision,
    Deny,
    Guard,
    Limits,
    Policy,
)
from intermediate_server.policy.base import speaks_for_authorize
from intermediate_server.types import Peer, Registration


class Scripted(Policy):
    """Does what the test says."""

    def __init__(self, run: Callable[[], object] = Allow) -> None:
        self.run = run
        self.running = 0
        self.most = 0
        self.told: list[str] = []

    @override
    async def authorize(self, registration: Registration) -> Decision:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            answer = self.run()
            return await answer if asyncio.iscoroutine(answer) else answer  # type: ignore[return-value]
        finally:
            self.running -= 1

    @override
    def select(self, service: str, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        return self.run()  # type: ignore[return-value]

    @override
    async def on_closed(self, peer: Peer, reason: str) -> None:
        self.run()
        self.told.append(reason)


def raising(error: BaseException) -> Callable[[], object]:
    def run() -> object:
        raise error

    return run


class NativePanic(BaseException):
    """What a panic in a native extension looks like."""


class TestGuard:
    @pytest.mark.parametrize("decision", [Allow("rule 1"), Deny("not you", rule="rule 2")])
    async def test_a_decision_passes_unchanged(self, decision: Decision) -> None:
        assert await Guard(Scripted(lambda: decision)).authorize(wanted()) is decision

    @pytest.mark.parametrize(
        "error",
        [error("hunter2") for error in (ValueError, SystemExit, KeyboardInterrupt, NativePanic, TimeoutError)],
        ids=repr,
    )
    async def test_an_exception_is_a_denial_that_keeps_its_text_to_itself(self, error: BaseException) -> None:
        decision = await Guard(Scripted(raising(error))).authorize(wanted())
        assert isinstance(decision, Deny)
        assert decision.temporary
        assert f"raised {type(error).__name__} at test_policy_guard.py:" in decision.reason
        assert "hunter2" not in decision.reason

    async def test_a_cancellation_from_within_is_a_denial(self) -> None:
        decision = await Guard(Scripted(raising(asyncio.CancelledError()))).authorize(wanted())
        assert decision == Deny("the policy was cancelled from within", "policy failure", temporary=True)

    @pytest.mark.parametrize("answer", [None, True, "allow", Allow], ids=repr)
    async def test_a_wrong_answer_is_a_denial(self, answer: object) -> None:
        decision = await Guard(Scripted(lambda: answer)).authorize(wanted())
        assert isinstance(decision, Deny)
        assert "not Allow or Deny" in decision.reason

    @pytest.mark.parametrize(
        "answer",
        [
            Allow(7),  # type: ignore[arg-type]
            Allow(limits=None),  # type: ignore[arg-type]
            Allow(limits=Limits(connections=1.5)),  # type: ignore[arg-type]
            Allow(limits=Limits(connections=True)),
            Allow(limits=Limits(packets_per_second=2**63)),
            Allow(valid_until="2030-01-01"),  # type: ignore[arg-type]
            Allow(direct=0),  # type: ignore[arg-type]
            Allow(valid_until=datetime(2030, 1, 1)),  # noqa: DTZ001
            Deny(None),  # type: ignore[arg-type]
            Deny("no", rule=7),  # type: ignore[arg-type]
            Deny("no", temporary=None),  # type: ignore[arg-type]
        ],
        ids=repr,
    )
    async def test_an_answer_that_is_not_whole_is_a_denial(self, answer: Decision) -> None:
        for decision in (
            await Guard(Scripted(lambda: answer)).authorize(wanted()),
            await Guard(Scripted(lambda: answer)).reauthorize(wanted()),
        ):
            assert isinstance(decision, Deny)
            assert decision.temporary
            assert decision.reason.startswith("the policy answered ")

    async def test_a_time_zone_that_fails_is_a_denial(self) -> None:
        class Broken(tzinfo):
            @override
            def utcoffset(self, when: datetime | None, /) -> timedelta:
                raise ValueError("hunter2")

        answer = Allow(valid_until=datetime(2030, 1, 1, tzinfo=Broken()))  # type: ignore[abstract]
        decision = await Guard(Scripted(lambda: answer)).authorize(wanted())
        assert isinstance(decision, Deny)
        assert "answered what raised ValueError" in decision.reason

    async def test_a_late_answer_is_a_denial_and_the_call_is_cancelled(self) -> None:
        policy = Scripted(lambda: asyncio.Event().wait())
        guard = Guard(policy, deadline=0.01)
        decision = await guard.authorize(wanted())
        assert decision == Deny("the policy did not answer within 0.01 s", "policy failure", temporary=True)
        await guard.aclose()
        assert policy.running == 0

    async def test_a_call_that_refuses_to_end_holds_its_place_and_nobody_up(self) -> None:
        release = asyncio.Event()

        async def stubborn() -> Decision:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
            return Allow()

        policy = Scripted(stubborn)
        guard = Guard(policy, deadline=0.01, concurrency=2)
        decisions = [await guard.authorize(wanted()) for _ in range(4)]
        assert [decision.reason for decision in decisions if isinstance(decision, Deny)] == [
            "the policy did not answer within 0.01 s",
            "the policy did not answer within 0.01 s",
            "the policy had no free place for 0.01 s",
            "the policy had no free place for 0.01 s",
        ]
        assert policy.running == 2
        release.set()
        await guard.aclose()
        policy.run = Allow
        assert await guard.authorize(wanted()) == Allow(), "places are free again when the calls have ended"

    async def test_no_more_calls_than_places_run_at_a_time(self) -> None:
        async def brief() -> Decision:
            await asyncio.sleep(0)
            return Allow()

        policy = Scripted(brief)
        guard = Guard(policy, deadline=60, concurrency=3)
        assert await asyncio.gather(*(guard.authorize(wanted()) for _ in range(50))) == [Allow()] * 50
        assert policy.most == 3

    async def test_a_policy_says_how_many_questions_it_takes(self) -> None:
        release = asyncio.Event()
        policy = Scripted(release.wait)
        policy.concurrency = 4
        guard = Guard(policy, deadline=60)
        asking = [
            asyncio.ensure_future(ask(wanted())) for ask in (guard.authorize, guard.reauthorize) for _ in range(20)
        ]
        async with asyncio.timeout(10):
            while policy.running < 6:  # noqa: ASYNC110 - the tasks decide when
                await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*asking)
        assert policy.most == 6, "four about new registrations and two about granted ones"

    async def test_questions_of_one_kind_leave_the_places_of_the_others(self) -> None:
        policy = Scripted(lambda: asyncio.Event().wait())
        guard = Guard(policy, deadline=60, concurrency=1)
        asking = asyncio.create_task(guard.authorize(wanted()))
        reauthorizing = asyncio.create_task(guard.reauthorize(wanted()))
        async with asyncio.timeout(10):
            while policy.running < 2:  # noqa: ASYNC110 - the tasks decide when
                await asyncio.sleep(0)
            policy.run = Allow
            assert await guard.closed(peer(1, "agent"), "reset") is None
        for task in (asking, reauthorizing):
            task.cancel()
        await asyncio.gather(asking, reauthorizing, return_exceptions=True)

    async def test_a_reauthorization_without_a_free_place_is_no_decision(self) -> None:
        guard = Guard(Scripted(lambda: asyncio.Event().wait()), deadline=0.01, concurrency=1)
        await guard._reauthorization_places.acquire()
        assert await guard.reauthorize(wanted()) is None
        guard._reauthorization_places.release()
        assert isinstance(await guard.reauthorize(wanted()), Deny), "who was asked and is late has failed"

    async def test_a_cancelled_caller_takes_its_call_with_it(self) -> None:
        started = asyncio.Event()

        async def hang() -> Decision:
            started.set()
            await asyncio.Event().wait()
            return Allow()

        policy = Scripted(hang)
        guard = Guard(policy, deadline=60, concurrency=1)
        first = asyncio.create_task(guard.authorize(wanted()))
        await started.wait()
        waiting = asyncio.create_task(guard.authorize(wanted()))
        await asyncio.sleep(0)
        for task in (waiting, first):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        policy.run = Allow
        assert await guard.authorize(wanted()) == Allow(), "neither kept the only place"
        assert policy.running == 0

    async def test_a_plain_function_may_answer_too(self) -> None:
        class Plain(Scripted):
            @override
            def authorize(self, registration: Registration) -> Decision:  # type: ignore[override]
                return Allow("plain")

        assert await Guard(Plain()).authorize(wanted()) == Allow("plain")

    async def test_a_closed_connection_is_told_and_a_failure_returned(self) -> None:
        policy = Scripted()
        assert await Guard(policy).closed(peer(1, "agent"), "idle_timeout") is None
        assert policy.told == ["idle_timeout"]
        failure = await Guard(Scripted(raising(ValueError()))).closed(peer(1, "agent"), "reset")
        assert failure is not None
        assert "raised ValueError" in failure


class TestSelect:
    first, second, third = (Candidate(peer(conn, "agent"), 0) for conn in (1, 2, 3))

    def chosen(self, run: Callable[[], object]) -> tuple[tuple[Candidate, ...], str | None]:
        return Guard(Scripted(run)).select("web", (self.first, self.second))

    async def test_the_registrys_order_is_the_default(self) -> None:
        guard = Guard(CertificatePolicy(anonymous=True))
        assert guard.select("web", [self.second, self.first]) == ((self.second, self.first), None)

    async def test_a_policy_may_exclude_and_rank(self) -> None:
        ranked = replace(self.second, rank=7)
        assert self.chosen(lambda: [ranked]) == ((ranked,), None)
        assert self.chosen(list) == ((), None)

    @pytest.mark.parametrize(
        "case", ["foreign", "twice", "other peer", "rank", "type", "none", "raises", "exits", "interrupts"]
    )
    async def test_a_failure_chooses_nobody(self, case: str) -> None:
        run: Callable[[], object] = {
            "foreign": lambda: [self.first, self.third],
            "twice": lambda: [self.first, self.first],
            "other peer": lambda: [replace(self.first, peer=peer())],
            "rank": lambda: [replace(self.first, rank=2**32)],
            "type": lambda: [self.first.peer],
            "none": lambda: None,
            "raises": raising(ValueError()),
            "exits": raising(SystemExit()),
            "interrupts": raising(KeyboardInterrupt()),
        }[case]
        candidates, failure = self.chosen(run)
        assert candidates == ()
        assert failure is not None
        assert failure.startswith("the policy raised ")


class TestDecide:
    class AtOnce(Scripted):
        """Decides without waiting as the test says."""

        @override
        def decide(self, registration: Registration) -> Decision | None:
            return self.run()  # type: ignore[return-value]

    class Waiting(AtOnce):
        """Below it, one with another way to authorize."""

        @override
        async def authorize(self, registration: Registration) -> Decision:
            return Deny("asked in vain")

    @pytest.mark.parametrize("answer", [Allow("staff"), Deny("left"), None])
    async def test_an_answer_is_passed_on(self, answer: Decision | None) -> None:
        assert Guard(self.AtOnce(lambda: answer)).decide(wanted()) == answer

    @pytest.mark.parametrize("run", [raising(RuntimeError("hunter2")), raising(NativePanic("hunter2")), lambda: "yes"])
    async def test_a_failure_is_a_temporary_denial(self, run: Callable[[], object]) -> None:
        answer = Guard(self.AtOnce(run)).decide(wanted())
        assert isinstance(answer, Deny)
        assert answer.temporary
        assert "hunter2" not in answer.reason

    def test_it_speaks_for_no_authorize_below_it(self) -> None:
        policy = self.AtOnce(lambda: None)
        assert speaks_for_authorize(policy, "decide")
        assert not speaks_for_authorize(policy, "explain")
        assert not speaks_for_authorize(self.Waiting(lambda: None), "decide")
        assert not speaks_for_authorize(Scripted(lambda: None), "decide")
