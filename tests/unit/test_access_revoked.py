"""What was revoked comes back only by an answer of the policy to a question that was asked afterwards."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest
from tests.unit.sessions_rig import HOST, Rig, ack, nack, rig
from typing_extensions import override

from intermediate_server.access.quotas import OverLimit
from intermediate_server.engine import Event
from intermediate_server.policy import Allow, Decision, Deny, Guard, Policy
from intermediate_server.types import Registration, Role

START = datetime(2026, 6, 1, tzinfo=UTC)
ALLOW, DENY = Allow("staff"), Deny("not today")
SERVICES = ("web", "db", "mail")
HOSTS = (HOST, "203.0.113.9")


class Answering(Policy):
    """Decides when it is asked, and answers when the test lets it: each question by itself, in any order."""

    def __init__(self) -> None:
        self.denied: set[tuple[str, str]] = set()
        """Pairs of host and service."""
        self.open: list[asyncio.Future[None]] = []
        self.asked = 0
        self.waits = True

    def decides(self, host: str, service: str) -> Decision:
        return DENY if (host, service) in self.denied else ALLOW

    @override
    async def authorize(self, registration: Registration) -> Decision:
        self.asked += 1
        answer = self.decides(str(registration.peer.address.host), registration.service)
        if self.waits:
            self.open.append(asyncio.get_running_loop().create_future())
            await self.open[-1]
        return answer

    def answer(self, number: int) -> None:
        self.open.pop(number).set_result(None)


async def answer_all(r: Rig, policy: Answering) -> None:
    while policy.open:
        policy.answer(0)
        await r.settle()


async def test_an_answer_that_was_remembered_does_not_survive_the_reauthorization_that_revoked_it() -> None:
    policy = Answering()
    policy.waits = False
    async with rig(policy) as r:
        await r.connect(1)
        for service in ("web", "db"):
            assert ack(1, service) in await r.register(1, Role.AGENT, service)
        policy.waits = True
        policy.denied = {(HOST, "web")}
        r.sessions.registrations.reauthorize_all()
        await r.settle()
        # The client repeats itself while it is under re-authorization, and is asked about before it is denied again.
        policy.denied.clear()
        await r.register(1, Role.AGENT, "web")
        policy.denied = {(HOST, "web")}
        policy.answer(1)
        await r.settle()
        await answer_all(r, policy)
        assert set(r.sessions.live[1].grants) == {(Role.AGENT, "db")}
        asked = policy.asked
        await r.register(1, Role.AGENT, "web")
        assert policy.asked == asked + 1, "the policy is asked"
        before = len(r.engine.batches)
        await answer_all(r, policy)
        assert r.told_since(before) == [nack(1, "web")]


async def limit(r: Rig, policy: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    """The month is used up, and begins anew."""
    quotas = r.sessions.registrations._grants._quotas
    with monkeypatch.context() as patched:
        patched.setattr(quotas, "count", lambda usage: [1])
        patched.setattr(quotas, "over_limit", lambda peer, limits: OverLimit("volume", "used up"))
        r.sessions.registrations.count_usage([])
    assert r.totals.revoked["volume"] == 2
    r.sessions.live[1].closing = False


async def failure(r: Rig, policy: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect ends what is registered."""
    with monkeypatch.context() as patched:
        patched.setattr(r.sessions.registrations, "_renew", lambda *_, **__: 1 / 0)
        await r.sessions.registrations.reauthorize_all()
    r.sessions.live[1].closing = False


@pytest.mark.parametrize("end", [limit, failure])
async def test_however_it_was_revoked_the_policy_is_asked_again(
    end: Callable[[Rig, Answering, pytest.MonkeyPatch], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Answering()
    policy.waits = False
    async with rig(policy) as r:
        await r.connect(1)
        for service in ("web", "db"):
            await r.register(1, Role.AGENT, service)
        await end(r, policy, monkeypatch)
        assert r.sessions.live[1].grants == {}
        asked = policy.asked
        policy.denied = {(HOST, "web")}
        assert nack(1, "web") in await r.register(1, Role.AGENT, "web")
        assert policy.asked == asked + 1


async def reload(r: Rig, policy: Answering) -> None:
    """The settings have changed, and the policy is kept."""
    r.sessions.registrations.reauthorize_all()


async def replace(r: Rig, policy: Answering) -> None:
    r.sessions.registrations.use_policy(Guard(policy))


async def move_and_return(r: Rig, policy: Answering) -> None:
    for host in (HOSTS[1], HOSTS[0]):
        await r.happen(Event.AddressChanged(1, (host, 9)))


async def grant_ends(r: Rig, policy: Answering) -> None:
    r.sessions.registrations._grant_ends((1, Role.AGENT, "web"))


@pytest.mark.parametrize("event", [reload, replace, move_and_return, grant_ends])
async def test_an_answer_on_its_way_counts_no_more(
    event: Callable[[Rig, Answering], Awaitable[None]],
) -> None:
    policy = Answering()
    async with rig(policy) as r:
        await r.connect(1)
        await r.register(1, Role.AGENT, "web")
        policy.denied = {(HOST, "web")}
        await event(r, policy)
        await r.settle()
        before = len(r.engine.batches)
        await answer_all(r, policy)
        assert r.told_since(before) == [nack(1, "web")]
        assert r.totals.registrations == 0
        assert policy.asked == 2


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_happens_in_which_order_what_is_granted_is_what_the_policy_allows(seed: int) -> None:
    """Each change of what the policy allows comes with a reload, as an operator makes it."""
    chance = random.Random(seed)
    policy = Answering()
    async with rig(policy, registration_timeout=1e6) as r:
        registrations = r.sessions.registrations
        await r.connect(1)
        policy.waits = False
        await r.register(1, Role.AGENT, "always")
        policy.waits = True
        host = HOST

        def granted() -> set[str]:
            return {service for _, service in r.sessions.live[1].grants} - {"always"}

        def allowed() -> set[str]:
            return {service for service in SERVICES if policy.decides(host, service) == ALLOW}

        for _ in range(100):
            match chance.randrange(7):
                case 0 | 1:
                    await r.register(1, Role.AGENT, chance.choice(SERVICES))
                case 2:
                    policy.denied ^= {(chance.choice(HOSTS), chance.choice(SERVICES))}
                    if chance.random() < 0.5:
                        registrations.reauthorize_all()
                    else:
                        registrations.use_policy(Guard(policy))
                case 3:
                    host = chance.choice(HOSTS)
                    await r.happen(Event.AddressChanged(1, (host, 9)))
                case _ if policy.open:
                    policy.answer(chance.randrange(len(policy.open)))
            await r.settle()
            assert policy.open or granted() <= allowed()
        await answer_all(r, policy)
        # And what is allowed can be had.
        for service in SERVICES:
            await r.later(10.0)
            await r.register(1, Role.AGENT, service)
            await answer_all(r, policy)
        assert granted() == allowed()
