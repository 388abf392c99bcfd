"""What is registered is asked about again: all of it, in bounded time, and never at the cost of anybody else."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from tests.unit.sessions_rig import MovedTime, Rig, ack, connected, nack, register, rig
from typing_extensions import override

from intermediate_server.engine import Event
from intermediate_server.policy import Allow, CertificatePolicy, Decision, Deny, Guard, Policy
from intermediate_server.sessions import reauthorization
from intermediate_server.types import Registration, Role

ALLOW, DENY = Allow("staff"), Deny("not today")


class Slow(Policy):
    """Answers those who wait when the test says so, and decides by the address they were asked about for."""

    def __init__(self, *, answer: Decision = ALLOW, waits: bool = True) -> None:
        self.answer = answer
        self.waits = waits
        self.denied_host = ""
        self.asked: list[Registration] = []
        self._batch = asyncio.Event()

    @override
    async def authorize(self, registration: Registration) -> Decision:
        self.asked.append(registration)
        answer = DENY if str(registration.peer.address.host) == self.denied_host else self.answer
        if self.waits:
            await self._batch.wait()
        return answer

    def let_go(self) -> None:
        """Answer all who wait now."""
        self._batch.set()
        self._batch = asyncio.Event()


async def agents(r: Rig, count: int) -> None:
    """So many anonymous connections, each registered as an agent of web."""
    await r.happen(
        *(connected(conn) for conn in range(1, count + 1)),
        *(register(conn, Role.AGENT, "web") for conn in range(1, count + 1)),
    )
    assert r.totals.registrations == count


async def test_many_grants_that_end_together_do_not_run_each_other_over() -> None:
    clocks = MovedTime()
    policy = Slow(waits=False, answer=Allow("staff", valid_until=clocks.now() + timedelta(hours=1)))
    async with rig(policy, clocks=clocks) as r:
        # No more at once than a guard has places: registrations are not what this is about.
        for first in range(0, 600, 50):
            await r.happen(
                *(connected(first + n) for n in range(50)),
                *(register(first + n, Role.AGENT, "web") for n in range(50)),
            )
        assert r.totals.registrations == 600
        policy.waits, policy.answer = True, ALLOW
        await r.later(3_600)
        # Each answer takes half a second: those that ask last have waited for ten, five times what a guard allows.
        for _ in range(20):
            await r.settle()
            policy.let_go()
            await r.later(0.5)
        assert len(policy.asked) == 1_200
        assert sum(r.totals.revoked.values()) == 0
        assert {session.grants[Role.AGENT, "web"] for session in r.sessions._sessions.values()} == {ALLOW}


async def test_registrations_that_hang_take_no_place_of_a_reauthorization() -> None:
    policy = Slow(waits=False)
    async with rig(policy) as r:
        await agents(r, 40)
        policy.waits = True
        new = range(100, 300)
        await r.happen(
            *(connected(conn, host="192.0.2.9") for conn in new),
            *(register(conn, Role.AGENT, "web") for conn in new),
        )
        policy.waits = False
        async with asyncio.timeout(30):
            assert await r.sessions.registrations.reauthorize_all() == 0


async def test_waiting_for_a_place_takes_no_time_from_an_answer() -> None:
    policy = Slow(waits=False)
    policy.concurrency = 2
    async with rig(policy) as r:
        await agents(r, 8)
        policy.waits = True
        reauthorization = r.sessions.registrations.reauthorize_all()
        await r.settle()
        # One place, and each answer takes three quarters of its time.
        for _ in range(8):
            await r.later(1.5)
            policy.let_go()
            await r.settle()
        assert reauthorization.result() == 0


async def test_who_cannot_be_asked_about_in_time_is_granted_nothing() -> None:
    policy = Slow(waits=False)
    async with rig(policy) as r:
        await agents(r, 3)
        guard = r.sessions.registrations._guard
        # As questions do that go on although they were cancelled.
        for _ in range(32):
            await guard._reauthorization_places.acquire()
        reauthorization = r.sessions.registrations.reauthorize_all()
        for _ in range(14):
            assert await r.later(2.1) == []
        assert not reauthorization.done(), "no free place is no denial"
        assert [command[0] for command in await r.later(2.1)] == ["agent", "close"] * 3
        assert reauthorization.result() == 3
        assert len(policy.asked) == 3


async def test_another_reload_does_not_wait_for_a_policy_that_hangs() -> None:
    async with rig(Slow(waits=False)) as r:
        await agents(r, 100)
        registrations = r.sessions.registrations
        hanging = Guard(Slow())
        first = registrations.use_policy(hanging)
        await r.settle()
        assert not first.done()
        async with asyncio.timeout(30):
            closing = asyncio.create_task(hanging.aclose())
            assert await registrations.use_policy(Guard(CertificatePolicy(anonymous=False))) == 100
            await closing
        assert first.result() == 0, "the second one has taken over what was left of it"
        assert r.totals.disconnected["access"] == 100


async def test_a_policy_that_hangs_ends_what_it_is_asked_about() -> None:
    async with rig(Slow(waits=False)) as r:
        await agents(r, 100)
        reauthorization = r.sessions.registrations.use_policy(Guard(Slow()))
        await r.settle()
        rounds = 0
        while not reauthorization.done():
            await r.later(2.1)
            rounds += 1
        assert (reauthorization.result(), rounds) == (100, 4), "32 at a time"


async def test_one_that_fails_ends_one_registration_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with rig(Slow(waits=False)) as r:
        await agents(r, 5)
        quotas = r.sessions.registrations._grants._quotas
        over_limit = quotas.over_limit

        def failing(peer: object, limits: object) -> object:
            if getattr(peer, "conn", 0) == 2:
                raise RuntimeError
            return over_limit(peer, limits)  # type: ignore[arg-type]

        monkeypatch.setattr(quotas, "over_limit", failing)
        policy = Slow(waits=False)
        assert await r.sessions.registrations.use_policy(Guard(policy)) == 1
        assert {asked.peer.conn for asked in policy.asked} == {1, 2, 3, 4, 5}
        assert r.totals.disconnected["access"] == 1


async def test_the_end_of_the_server_ends_reauthorization() -> None:
    async with rig(Slow(waits=False)) as r:
        await agents(r, 2)
        reauthorization = r.sessions.registrations.use_policy(Guard(Slow()))
        await r.settle()
        r.sessions.stop()
        assert await reauthorization == 0


async def test_an_agent_that_moves_while_it_is_asked_about_is_asked_about_again() -> None:
    policy = Slow()
    policy.denied_host = "203.0.113.9"
    async with rig(policy) as r:
        await r.connect(1)
        assert await r.register(1, Role.AGENT, "web") == []
        await r.happen(Event.AddressChanged(1, (policy.denied_host, 9)))
        policy.let_go()
        await r.settle()
        before = len(r.engine.batches)
        policy.let_go()
        await r.settle()
        assert r.told_since(before) == [nack(1, "web")]
        assert [str(asked.peer.address.host) for asked in policy.asked] == ["192.0.2.1", "203.0.113.9"]
        assert r.totals.registrations == 0


async def test_an_agent_that_never_stays_is_not_asked_about_for_ever() -> None:
    policy = Slow()
    async with rig(policy) as r:
        await r.connect(1)
        await r.register(1, Role.AGENT, "web")
        for number in range(10):
            await r.happen(Event.AddressChanged(1, (f"203.0.113.{number}", 9)))
            policy.let_go()
            await r.settle()
        assert len(policy.asked) == 4
        assert (r.totals.registrations, r.totals.denied) == (0, 1)
        # It was told nothing, asks again as all clients do, and stays.
        assert await r.register(1, Role.AGENT, "web") == []
        before = len(r.engine.batches)
        policy.let_go()
        await r.settle()
        assert r.told_since(before) == [("agent", 1, ["web"]), ack(1, "web")]


async def test_a_denial_is_repeated_for_a_while_and_no_longer() -> None:
    policy = Slow(waits=False, answer=DENY)
    async with rig(policy, registration_timeout=60) as r:
        await r.connect(1)
        assert await r.register(1, Role.AGENT, "web") == [nack(1, "web")]
        policy.answer = ALLOW
        assert await r.register(1, Role.AGENT, "web") == [nack(1, "web")]
        await r.later(9.9)
        assert await r.register(1, Role.AGENT, "web") == [nack(1, "web")]
        assert len(policy.asked) == 1
        await r.later(0.1)
        assert await r.register(1, Role.AGENT, "web") == [("agent", 1, ["web"]), ack(1, "web")]


async def test_a_session_is_reauthorized_for_what_is_asked_for_and_once() -> None:
    seen: list[tuple[int, object]] = []
    async with rig(Slow(waits=False)) as r:
        await agents(r, 2)
        one, two = r.sessions._sessions.values()

        async def reauthorize(each: reauthorization.Reauthorization) -> int:
            seen.append((each.session.peer.conn, each.only))
            return 0

        made = reauthorization.Reauthorizations(
            reauthorize=reauthorize, reauthorized=lambda session: None, spawn=asyncio.get_running_loop().create_task
        )
        a, b = frozenset([(Role.AGENT, "a")]), frozenset([(Role.AGENT, "b")])
        made.add(one, cause="expired", only=a)
        made.add(one, cause="expired", only=b)
        made.add(two, cause="expired", only=a)
        made.add(two, cause="policy")
        made.add(two, cause="expired", only=b)
        await r.settle()
        assert seen == [(1, a | b), (2, None)]
        assert await made.add_all([], cause="policy") == 0
        made.stop()
