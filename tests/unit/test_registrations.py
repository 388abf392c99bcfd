"""Registrations whose decision is awaited: their order, their place, and what ends meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs
from tests.unit.sessions_rig import ack, certificate, closed, connected, register, rig

from intermediate_server.pki import keys
from intermediate_server.policy import Allow, Candidate, Decision, Policy
from intermediate_server.types import Peer, Registration, Role


class Slow(Policy):
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.admission = asyncio.Semaphore(0)
        self.closed: list[tuple[int, str]] = []
        self.answer: Decision | BaseException = Allow("slow")

    async def authorize(self, registration: Registration) -> Decision:
        self.asked.append(registration.service)
        await self.admission.acquire()
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    async def on_closed(self, peer: Peer, reason: str) -> None:
        self.closed.append((peer.conn, reason))


class TestAwaitedDecisions:
    async def test_answers_keep_the_order_of_the_questions(self) -> None:
        policy = Slow()
        async with rig(policy) as r:
            await r.connect(1)
            assert (
                await r.happen(register(1, Role.AGENT, "a"), register(1, Role.AGENT, "b"), register(1, Role.AGENT, "a"))
                == []
            )
            assert policy.asked == ["a"]
            batches = len(r.engine.batches)
            policy.admission.release()
            policy.admission.release()
            await r.settle()
            assert r.told_since(batches) == [
                ("agent", 1, ["a"]),
                ack(1, "a"),
                ("agent", 1, ["a", "b"]),
                ack(1, "b"),
                ack(1, "a"),
            ]
            assert policy.asked == ["a", "b"]

    async def test_what_waits_is_bounded(self) -> None:
        async with rig(Slow(), control_pending=3) as r:
            await r.connect(1)
            await r.happen(*(register(1, Role.AGENT, f"s{n}") for n in range(10)))
            assert r.totals.control_dropped == 6

    async def test_a_connection_that_goes_meanwhile_is_given_no_route(self) -> None:
        policy = Slow()
        async with rig(policy) as r:
            await r.connect(1)
            await r.register(1, Role.CONNECTOR, "web")
            batches = len(r.engine.batches)
            await r.happen(closed(1))
            policy.admission.release()
            await r.settle()
            assert r.told_since(batches) == []
            assert r.registry.counts.connectors == 0
            assert policy.closed == [], "it had never registered"

    async def test_others_do_not_wait_for_a_slow_answer(self) -> None:
        policy = Slow()
        async with rig(policy) as r:
            for conn in (1, 2):
                await r.connect(conn)
                await r.register(conn, Role.AGENT, f"s{conn}")
            assert policy.asked == ["s1", "s2"]

    async def test_a_policy_that_fails_is_silent_and_asked_again(self) -> None:
        policy = Slow()
        policy.answer = RuntimeError("secret")
        with capture_logs() as logs:
            async with rig(policy) as r:
                await r.connect(1)
                policy.admission.release()
                assert await r.register(1, Role.AGENT, "web") == []
                assert r.totals.denied == 1
                policy.answer = Allow("slow")
                policy.admission.release()
                assert (await r.register(1, Role.AGENT, "web"))[-1] == ack(1, "web")
        assert "secret" not in str([line for line in logs if line["log_level"] != "debug"])

    async def test_it_is_told_of_the_end_of_who_had_registered(self) -> None:
        policy = Slow()
        async with rig(policy) as r:
            await r.connect(1)
            policy.admission.release()
            await r.register(1, Role.AGENT, "web")
            await r.happen(closed(1, cause="idle_timeout"))
            assert policy.closed == [(1, "idle_timeout")]

    async def test_a_policy_may_exclude_connectors(self) -> None:
        class Newest(Slow):
            def select(self, service: str, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
                if service == "broken":
                    raise RuntimeError
                return [candidate for candidate in candidates if candidate.peer.conn != 1]

        policy = Newest()
        async with rig(policy) as r:
            for conn in (1, 2):
                await r.connect(conn)
                policy.admission.release()
                told = await r.register(conn, Role.CONNECTOR, "web")
                assert ("service", "web", [2] if conn == 2 else []) in told
            policy.admission.release()
            assert ("service", "broken", []) in await r.register(2, Role.CONNECTOR, "broken")

    @pytest.mark.parametrize("excluded", [False, True])
    async def test_a_replaced_connector_shares_the_lot_of_the_one_in_its_place(self, excluded: bool) -> None:
        seen: list[list[int]] = []

        class Choosing(Slow):
            def select(self, service: str, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
                seen.append([candidate.peer.conn for candidate in candidates])
                return [] if excluded and len(seen) > 1 else candidates

        key = keys.new_key()
        shown = certificate("connector.web.ztna", key=key)
        policy = Choosing()
        async with rig(policy) as r:
            for conn, targets in ((1, [1]), (2, [] if excluded else [2, 1])):
                await r.happen(connected(conn, shown))
                policy.admission.release()
                assert ("service", "web", targets) in await r.register(conn, Role.CONNECTOR, "web")
        assert seen == [[1], [2]], "it is no candidate"
