"""Who is admitted and what is granted for how long: the order of decisions, and what is taken back when."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime, timedelta

import pytest
from tests.unit.sessions_rig import (
    HOST,
    MovedTime,
    Rig,
    ack,
    certificate,
    connected,
    nack,
    port_of,
    register,
    revoked,
    rig,
)
from typing_extensions import override

from intermediate_server.access.admission import Admission
from intermediate_server.engine import Command, Event
from intermediate_server.pki import Revocations, certificate_ids
from intermediate_server.policy import Allow, Decision, Deny, Guard, Limits, Policy, RulesPolicy
from intermediate_server.policy.rules_file import parse_rules
from intermediate_server.types import Registration, Role
from intermediate_server.wire import close_codes

AGENT = Role.AGENT
WEB: dict[str, object] = {"name": "web", "peers": "anyone", "agent": ["web"]}
HOUR = timedelta(hours=1)


class Scripted(Policy):
    """Answers what the test says, when it says it."""

    def __init__(self, answer: Decision) -> None:
        self.answer = answer
        self.asked: list[Registration] = []
        self.answers = asyncio.Event()
        self.answers.set()

    @override
    async def authorize(self, registration: Registration) -> Decision:
        self.asked.append(registration)
        answer = self.answer
        await self.answers.wait()
        return answer


def rules(*tables: dict[str, object]) -> RulesPolicy:
    return RulesPolicy(parse_rules(tables))


async def join(r: Rig, conn: int, *certificates: bytes) -> list[tuple[object, ...]]:
    """A connection that asks at once to be an agent of web; what the engine was told beside its address report."""
    commands = await r.happen(connected(conn, *certificates), register(conn, AGENT, "web"))
    assert commands[0][:2] == ("send", conn)
    return commands[1:]


async def test_what_a_refused_peer_sent_with_its_handshake_is_never_handled() -> None:
    bad, good = certificate(), certificate()
    banned = Revocations(fingerprints=frozenset([hashlib.sha256(bad).hexdigest()]))
    async with rig(rules(WEB), admission=Admission(revocations=banned)) as r:
        (end,) = await r.happen(connected(1, bad), register(1, AGENT, "web"))
        assert end[:3] == ("close", 1, close_codes.CERTIFICATE_REVOKED)
        first, report, *rest = await r.happen(
            connected(2, bad), connected(3, good), register(2, AGENT, "web"), register(3, AGENT, "web")
        )
        assert first[:3] == ("close", 2, close_codes.CERTIFICATE_REVOKED)
        assert report[:2] == ("send", 3)
        assert rest == [("agent", 3, ["web"]), ack(3, "web")]
        assert r.totals.rejected["revoked"] == 2
        assert r.totals.registrations == 1


@pytest.mark.parametrize(
    ("chain", "code", "cause"),
    [
        ([b"not a certificate"], close_codes.BAD_CERTIFICATE, "unreadable"),
        ([certificate(lasts=timedelta(seconds=-1))], close_codes.CERTIFICATE_EXPIRED, "expired"),
        ([], close_codes.CERTIFICATE_REQUIRED, "anonymous"),
    ],
    ids=["unreadable", "expired", "none"],
)
async def test_who_is_not_served_at_all(chain: list[bytes], code: int, cause: str) -> None:
    async with rig(rules(WEB), admission=Admission(anonymous=False)) as r:
        (end,) = await r.happen(connected(1, *chain), register(1, AGENT, "web"))
        assert end[:3] == ("close", 1, code)
        assert r.totals.rejected[cause] == 1


async def test_limits_and_routes_come_before_the_ack_in_one_batch() -> None:
    async with rig(rules(WEB | {"limits": {"bytes-per-second": 1_000}})) as r:
        await r.happen(connected(1, certificate()))
        before = len(r.engine.batches)
        await r.register(1, AGENT, "web")
        (batch,) = r.engine.batches[before:]
        limits, routes, answer = batch
        assert isinstance(limits, Command.SetLimits)
        assert (limits.conn, limits.identity_class, limits.bytes_per_second) == (1, "certificate", 1_000)
        assert isinstance(routes, Command.SetAgent)
        assert isinstance(answer, Command.SendDatagram)
        assert ("send", 1, answer.data) == ack(1, "web")


@pytest.mark.parametrize("by", ["serial", "fingerprint"])
async def test_a_new_admission_cuts_routes_and_connection_in_one_batch(by: str) -> None:
    banned = [certificate(), certificate()]
    ids = certificate_ids(banned)
    if by == "serial":
        revocations = Revocations(serials=frozenset((one.issuer, one.serial) for one in ids), fingerprints=frozenset())
    else:
        revocations = Revocations(fingerprints=frozenset(one.fingerprint for one in ids))
    async with rig(rules(WEB)) as r:
        for conn, chain in enumerate([*banned, certificate()], start=1):
            await join(r, conn, chain)
        before = len(r.engine.batches)
        assert r.sessions.use_admission(Admission(revocations=revocations)) == 2
        await r.settle()
        assert len(r.engine.batches) == before + 1
        assert [command[:3] for command in r.told_since(before)] == [
            ("agent", 1, []),
            ("close", 1, close_codes.CERTIFICATE_REVOKED),
            ("agent", 2, []),
            ("close", 2, close_codes.CERTIFICATE_REVOKED),
        ]
        assert await r.register(1, AGENT, "web") == []
        assert r.sessions.use_admission(Admission(revocations=revocations)) == 0, "once is enough"
        assert r.totals.disconnected["revoked"] == 2


async def test_another_policy_revokes_and_closes_what_is_left_empty() -> None:
    both: dict[str, object] = {"name": "both", "peers": "anyone", "agent": ["web", "db"]}
    async with rig(rules(both)) as r:
        await join(r, 1)
        await join(r, 2)
        await r.register(2, AGENT, "db")
        assert len(r.sessions.registrations.anonymous) == 2
        before = len(r.engine.batches)
        assert await r.sessions.registrations.use_policy(Guard(rules(both | {"agent": ["db"]}))) == 2
        await r.settle()
        told = r.told_since(before)
        assert told == [("agent", 1, []), ("agent", 2, ["db"]), revoked(1)], "all routes before the first connection"
        assert list(r.sessions.registrations.anonymous) == [2]
        assert r.totals.revoked["policy"] == 2


async def test_new_limits_reach_what_is_registered() -> None:
    async with rig(rules(WEB)) as r:
        await join(r, 1)
        slow = rules(WEB | {"limits": {"packets-per-second": 7}})
        assert await r.sessions.registrations.use_policy(Guard(slow)) == 0
        await r.settle()
        (limits,) = r.engine.batches[-1]
        assert isinstance(limits, Command.SetLimits)
        assert limits.packets_per_second == 7
        before = len(r.engine.batches)
        assert await r.sessions.registrations.reauthorize_all() == 0
        await r.settle()
        assert len(r.engine.batches) == before


async def test_a_decision_of_the_policy_before_counts_no_more() -> None:
    slow = Scripted(Allow("old"))
    slow.answers.clear()
    async with rig(slow) as r:
        assert await join(r, 1) == []
        assert await r.sessions.registrations.use_policy(Guard(Scripted(Deny("new")))) == 0
        slow.answers.set()
        assert await r.later(0) == [nack(1, "web")]
        assert r.totals.registrations == 0


async def test_a_grant_ends_unless_it_is_granted_anew() -> None:
    policy = Scripted(Allow("first"))
    async with rig(policy) as r:
        policy.answer = Allow("first", valid_until=r.clocks.now() + HOUR)
        assert await join(r, 1) == [("agent", 1, ["web"]), ack(1, "web")]
        policy.answer = Allow("second", valid_until=r.clocks.now() + 2 * HOUR)
        assert await r.later(3_600) == []
        assert len(policy.asked) == 2
        # The same answer again is over by then.
        assert await r.later(3_600) == [("agent", 1, []), revoked(1)]
        assert len(policy.asked) == 3
        assert r.totals.revoked["expired"] == 1


async def test_a_grant_that_has_ended_already_is_none() -> None:
    async with rig(Scripted(Allow("late", valid_until=MovedTime().now()))) as r:
        assert await join(r, 1) == [nack(1, "web")]


async def test_a_certificate_is_cut_at_its_end() -> None:
    async with rig(rules(WEB)) as r:
        for conn in (1, 2):
            await join(r, conn, certificate(lasts=HOUR))
        told = await r.later(3_600)
        assert [command[:3] for command in told] == [
            ("agent", 1, []),
            ("close", 1, close_codes.CERTIFICATE_EXPIRED),
            ("agent", 2, []),
            ("close", 2, close_codes.CERTIFICATE_EXPIRED),
        ]
        assert r.totals.disconnected["expired"] == 2


async def test_a_rule_for_a_network_holds_when_the_peer_moves() -> None:
    async with rig(rules(WEB | {"network": ["192.0.2.0/24"]})) as r:
        assert ack(1, "web") in await join(r, 1)
        for host, answer in (("192.0.2.99", []), ("203.0.113.9", [("agent", 1, []), revoked(1)])):
            told = await r.happen(Event.AddressChanged(1, (host, 4_000)))
            assert [command for command in told if command[0] != "send"] == answer


async def test_a_peer_that_keeps_moving_is_asked_about_once_at_a_time() -> None:
    policy = Scripted(Allow("any"))
    async with rig(policy) as r:
        await join(r, 1)
        policy.answers.clear()
        tasks = set()
        for number in range(100):
            await r.happen(Event.AddressChanged(1, (f"198.51.100.{number + 2}", 4_000)))
            tasks.add(len(asyncio.all_tasks()))
        assert len(tasks) == 1, "as many as after the first move"
        assert len(policy.asked) == 2
        policy.answer = Deny("not from there")
        policy.answers.set()
        assert [command for command in await r.later(0) if command[0] != "send"] == [("agent", 1, []), revoked(1)]
        assert len(policy.asked) == 3, "once more, for where it is in the end"
        assert str(policy.asked[-1].peer.address.host) == "198.51.100.101"
        # Another port of the same host is nobody else.
        policy.answer = Allow("any")
        await join(r, 2)
        await r.happen(Event.AddressChanged(2, (HOST, port_of(2) + 1)))
        assert len(policy.asked) == 4


async def test_a_rule_that_comes_into_force_counts_at_the_next_try() -> None:
    clocks = MovedTime()
    later = parse_rules([WEB | {"not-before": clocks.now() + HOUR}])
    async with rig(RulesPolicy(later, clock=clocks.now), clocks=clocks, registration_timeout=1e6) as r:
        assert await join(r, 1) == [nack(1, "web")]
        assert await r.later(3_600) == []
        assert await r.register(1, AGENT, "web") == [("agent", 1, ["web"]), ack(1, "web")]


async def test_a_rule_that_denies_from_a_moment_on_revokes_then() -> None:
    freeze: dict[str, object] = {"name": "freeze", "effect": "deny", "peers": "anyone", "agent": ["*"]}
    clocks = MovedTime()
    freeze |= {"not-before": clocks.now() + HOUR}
    async with rig(RulesPolicy(parse_rules([freeze, WEB]), clock=clocks.now), clocks=clocks) as r:
        assert ack(1, "web") in await join(r, 1)
        assert await r.later(3_600) == [("agent", 1, []), revoked(1)]
        assert r.totals.revoked["expired"] == 1


async def test_a_policy_that_fails_at_the_reauthorization_denies() -> None:
    class Failing(Policy):
        @override
        async def authorize(self, registration: Registration) -> Decision:
            raise RuntimeError

    async with rig(rules(WEB)) as r:
        await join(r, 1)
        before = len(r.engine.batches)
        assert await r.sessions.registrations.use_policy(Guard(Failing())) == 1
        await r.settle()
        assert r.told_since(before) == [("agent", 1, []), revoked(1)]


async def test_a_valid_until_without_zone_is_a_failure_of_the_policy() -> None:
    naive = Allow("x", valid_until=datetime(2027, 1, 1))  # noqa: DTZ001
    async with rig(Scripted(naive)) as r:
        assert await join(r, 1) == []
        assert r.totals.denied == 1


async def test_one_connection_too_many_is_told_no() -> None:
    one = WEB | {"limits": {"connections": 1}}
    assert parse_rules([one]).rules[0].limits == Limits(connections=1)
    shown = certificate()
    async with rig(rules(one)) as r:
        assert (await join(r, 1, shown))[-1] == ack(1, "web")
        assert await join(r, 2, shown) == [nack(2, "web")]
        assert r.totals.over_limit["connections"] == 1
