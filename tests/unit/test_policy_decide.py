"""Policies that decide at once: when they are asked so, and what happens when they cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from tests.unit.sessions_rig import HOST, Rig, ack, connected, nack, register, rig
from typing_extensions import override

from intermediate_server.engine import Event
from intermediate_server.policy import Allow, Candidate, CertificatePolicy, Decision, Deny, Guard, Policy
from intermediate_server.policy.base import speaks_for_authorize
from intermediate_server.types import Address, ConnectionId, Peer, Registration, Role

ALLOW, DENY = Allow("at once"), Deny("not today", "at once")
WANTED = Registration(Peer(ConnectionId(1), Address.of((HOST, 1)), None), Role.AGENT, "web")


class Both(Policy):
    """Decides at once, but for services whose names begin with ``slow``."""

    def __init__(self, answer: object = ALLOW) -> None:
        self.answer = answer
        self.asked: list[str] = []
        self.answered = asyncio.Event()

    @override
    async def authorize(self, registration: Registration) -> Decision:
        self.asked.append(registration.service)
        await self.answered.wait()
        return ALLOW

    @override
    def decide(self, registration: Registration) -> Decision | None:
        if registration.service.startswith("slow"):
            return None
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer  # type: ignore[return-value]


class Stricter(CertificatePolicy):
    """Overrides ``authorize`` alone, as policies may that were written before there was ``decide``."""

    @override
    async def authorize(self, registration: Registration) -> Decision:
        granted = await super().authorize(registration)
        return DENY if str(registration.peer.address.host) != HOST else granted


class Denying:
    """Overrides ``authorize`` from beside the policy."""

    async def authorize(self, registration: Registration) -> Decision:
        return DENY


class Mixed(Denying, CertificatePolicy):
    """The first base counts."""


class Deciding(CertificatePolicy):
    """Overrides ``decide`` alone."""

    @override
    def decide(self, registration: Registration) -> Decision:
        return ALLOW


class Sure(Stricter):
    """Overrides ``decide`` in its turn."""

    @override
    def decide(self, registration: Registration) -> Decision:
        return ALLOW


@pytest.mark.parametrize(
    ("policy", "answer"),
    [
        (CertificatePolicy(anonymous=True), Allow("anonymous")),
        (Stricter(anonymous=True), None),
        (Mixed(anonymous=True), None),
        (Sure(anonymous=True), ALLOW),
        (Both(), ALLOW),
        (Both(DENY), DENY),
        (Both(None), None),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_the_last_of_decide_and_authorize_counts(policy: Policy, answer: Decision | None) -> None:
    guard = Guard(policy)
    assert (guard.decide(WANTED) if guard.decides else None) == answer


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (RuntimeError("hunter2"), "raised RuntimeError at test_policy_decide.py:"),
        (SystemExit("hunter2"), "raised SystemExit at test_policy_decide.py:"),
        (True, "answered bool and not Allow or Deny"),
        (Allow(7), "answered a rule that is no text"),  # type: ignore[arg-type]
    ],
    ids=lambda value: str(value)[:20],
)
async def test_a_failure_denies_for_the_moment(answer: object, text: str) -> None:
    denied = Guard(Both(answer)).decide(WANTED)
    assert isinstance(denied, Deny)
    assert denied.temporary
    assert text in denied.reason
    assert "hunter2" not in denied.reason


async def test_what_is_decided_at_once_is_answered_at_once() -> None:
    policy = Both()
    async with rig(policy) as r:
        await r.connect(1)
        r.engine.inject(register(1, Role.AGENT, "web"))
        r.bridge.drain_now()
        assert r.told_since(len(r.engine.batches) - 1) == [("agent", 1, ["web"]), ack(1, "web")]
        policy.answer = DENY
        assert await r.register(1, Role.AGENT, "db") == [nack(1, "db")]
        policy.answer = ALLOW
        assert ack(1, "db") in await r.register(1, Role.AGENT, "db"), "its denials are not kept"
        assert policy.asked == []


async def test_what_cannot_be_decided_at_once_is_waited_for() -> None:
    policy = Both()
    async with rig(policy) as r:
        await r.connect(1)
        assert await r.register(1, Role.AGENT, "slow") == []
        assert policy.asked == ["slow"]
        # In order, whether or not its decision has to be awaited.
        assert await r.register(1, Role.AGENT, "web") == []
        before = len(r.engine.batches)
        policy.answered.set()
        await r.settle()
        told = r.told_since(before)
        assert [command for command in told if command[0] != "agent"] == [ack(1, "slow"), ack(1, "web")]


async def test_many_are_reauthorized_at_a_time_once_one_has_to_be_waited_for() -> None:
    policy = Both()
    policy.answered.set()
    async with rig(policy) as r:
        await agents(r, 100)
        policy = Both()
        done = r.sessions.registrations.use_policy(Guard(policy))
        await r.settle()
        assert len(policy.asked) == 32
        policy.answered.set()
        async with asyncio.timeout(30):
            assert await done == 0
        assert len(policy.asked) == 100


async def agents(r: Rig, count: int) -> None:
    """So many anonymous connections, each registered as an agent of what has to be waited for."""
    for first in range(1, count + 1, 50):
        conns = range(first, min(first + 50, count + 1))
        await r.happen(
            *(connected(conn) for conn in conns),
            *(register(conn, Role.AGENT, "slow") for conn in conns),
        )
    assert r.totals.registrations == count


async def test_a_subclass_that_asks_for_the_address_is_asked_when_it_changes() -> None:
    async with rig(Stricter(anonymous=True)) as r:
        await r.connect(1)
        assert ack(1, "web") in await r.register(1, Role.AGENT, "web")
        await r.happen(Event.AddressChanged(1, ("203.0.113.9", 9)))
        assert r.totals.revoked["policy"] == 1


async def test_what_a_policy_says_of_its_answers_ends_with_a_subclass_that_gives_others() -> None:
    for name in ("explain", "decides_by_source"):
        assert speaks_for_authorize(CertificatePolicy(anonymous=True), name)
        for policy in (Stricter(anonymous=True), Mixed(anonymous=True), Deciding(anonymous=True)):
            assert not speaks_for_authorize(policy, name)
            assert Guard(policy).decides_by_source


class Hooks(CertificatePolicy):
    """Overrides the hooks, which nobody calls for a policy without them."""

    @override
    def select(self, service: str, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        return candidates[:1]

    @override
    async def on_closed(self, peer: Peer, reason: str) -> None:
        raise AssertionError


async def test_a_guard_knows_what_its_policy_has_of_its_own() -> None:
    plain, hooks = Guard(CertificatePolicy(anonymous=True)), Guard(Hooks(anonymous=True))
    assert (plain.selects, plain.hears_closed, plain.decides_by_source) == (False, False, False)
    assert (hooks.selects, hooks.hears_closed, hooks.decides_by_source) == (True, True, False)
