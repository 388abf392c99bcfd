"""Sessions without a network: the order of decisions, and what is taken back when."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest
from tests.unit.access_bench import (
    ACK_WEB,
    NACK_WEB,
    START,
    WEB,
    Bench,
    Scripted,
    ids,
    make,
    rules,
)
from typing_extensions import override

from intermediate_server.access.admission import Admission
from intermediate_server.engine import Command, Event
from intermediate_server.pki import Revocations
from intermediate_server.policy import Allow, Decision, Deny, Guard, Limits, Policy
from intermediate_server.policy.rules_file import parse_rules
from intermediate_server.sessions import connections
from intermediate_server.types import Registration
from intermediate_server.wire import close_codes


@pytest.fixture
async def tasks(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[set[asyncio.Task[None]]]:
    monkeypatch.setattr(connections, "certificate_ids", ids)
    started: set[asyncio.Task[None]] = set()
    yield started
    for task in started:
        task.cancel()
    await asyncio.gather(*started, return_exceptions=True)


async def test_what_a_refused_peer_sent_with_its_handshake_is_never_handled(tasks: set[asyncio.Task[None]]) -> None:
    revoked = Revocations(fingerprints=frozenset([hashlib.sha256(b"bad").hexdigest()]))
    bench = make(rules(WEB), tasks, Admission(revocations=revoked))
    bench.connect(1, b"bad")
    bench.send(1)
    assert bench.kinds(bench.take()) == ["Close"]
    bench.connect(2, b"bad")
    bench.connect(3, b"good")
    bench.send(2)
    bench.send(3)
    first, *rest = bench.take()
    assert isinstance(first, Command.Close)
    assert (first.conn, first.code) == (2, close_codes.CERTIFICATE_REVOKED)
    assert bench.kinds(rest) == ["SetLimits", "SetAgent", "SendDatagram"]
    assert bench.totals.rejected["revoked"] == 2
    assert bench.totals.registrations == 1
    bench.sessions.stop()


@pytest.mark.parametrize(
    ("certificate", "code", "cause"),
    [
        (b"unreadable", close_codes.BAD_CERTIFICATE, "unreadable"),
        (b"old|0", close_codes.CERTIFICATE_EXPIRED, "expired"),
        (None, close_codes.CERTIFICATE_REQUIRED, "anonymous"),
    ],
)
async def test_who_is_not_served_at_all(
    tasks: set[asyncio.Task[None]], certificate: bytes | None, code: int, cause: str
) -> None:
    bench = make(rules(WEB), tasks, Admission(anonymous=False))
    bench.connect(1, certificate)
    bench.send(1)
    (close,) = bench.take()
    assert isinstance(close, Command.Close)
    assert close.code == code
    assert bench.totals.rejected[cause] == 1
    bench.sessions.stop()


async def test_limits_and_routes_come_before_the_ack_in_one_batch(tasks: set[asyncio.Task[None]]) -> None:
    bench = make(rules(WEB | {"limits": {"bytes-per-second": 1_000}}), tasks)
    bench.connect(1, b"ann")
    bench.send(1)
    limits, routes, ack = bench.take()
    assert isinstance(limits, Command.SetLimits)
    assert (limits.conn, limits.identity_class, limits.bytes_per_second) == (1, "certificate", 1_000)
    assert isinstance(routes, Command.SetAgent)
    assert isinstance(ack, Command.SendDatagram)
    assert ack.data == ACK_WEB
    bench.sessions.stop()


async def test_a_new_admission_cuts_routes_and_connection_in_one_batch(tasks: set[asyncio.Task[None]]) -> None:
    bench = make(rules(WEB), tasks)
    for conn, certificate in ((1, b"ann"), (2, b"bob")):
        bench.connect(conn, certificate)
        bench.send(conn)
    bench.take()
    revoked = Revocations(serials=frozenset([(b"issuer", 3)]), fingerprints=frozenset())
    assert bench.sessions.use_admission(Admission(revocations=revoked)) == 2, "both are three bytes long"
    batch = bench.take()
    assert bench.kinds(batch) == ["SetAgent", "Close", "SetAgent", "Close"]
    assert isinstance(batch[0], Command.SetAgent)
    assert batch[0].services == []
    bench.send(1)
    assert bench.take() == []
    assert bench.sessions.use_admission(Admission(revocations=revoked)) == 0, "once is enough"
    assert bench.totals.disconnected["revoked"] == 2
    bench.sessions.stop()


async def test_another_policy_revokes_and_closes_what_is_left_empty(tasks: set[asyncio.Task[None]]) -> None:
    both: dict[str, object] = {"name": "both", "peers": "anyone", "agent": ["web", "db"]}
    bench = make(rules(both), tasks)
    bench.connect(1)
    bench.send(1)
    bench.connect(2)
    bench.send(2)
    bench.send(2, b"\x10\x02db")
    assert len(bench.sessions.registrations.anonymous) == 2
    bench.take()
    assert await bench.sessions.registrations.use_policy(Guard(rules(both | {"agent": ["db"]}))) == 2
    batch = bench.take()
    assert bench.kinds(batch) == ["SetAgent", "SetAgent", "Close"], "all routes before the first connection"
    assert isinstance(batch[1], Command.SetAgent)
    assert (batch[1].conn, batch[1].services) == (2, [b"db"])
    assert isinstance(batch[2], Command.Close)
    assert (batch[2].conn, batch[2].code) == (1, close_codes.ACCESS_REVOKED)
    assert list(bench.sessions.registrations.anonymous) == [2]
    assert bench.totals.revoked["policy"] == 2
    bench.sessions.stop()


async def test_new_limits_reach_what_is_registered(tasks: set[asyncio.Task[None]]) -> None:
    bench = make(rules(WEB), tasks)
    bench.connect(1)
    bench.send(1)
    bench.take()
    slow = rules(WEB | {"limits": {"packets-per-second": 7}})
    assert await bench.sessions.registrations.use_policy(Guard(slow)) == 0
    (limits,) = bench.take()
    assert isinstance(limits, Command.SetLimits)
    assert limits.packets_per_second == 7
    assert await bench.sessions.registrations.reauthorize_all() == 0
    assert bench.take() == []
    bench.sessions.stop()


async def test_a_decision_of_the_policy_before_counts_no_more(tasks: set[asyncio.Task[None]]) -> None:
    slow = Scripted(Allow("old"))
    slow.admission.clear()
    bench = make(slow, tasks)
    bench.connect(1)
    bench.send(1)
    await bench.settle()
    assert await bench.sessions.registrations.use_policy(Guard(Scripted(Deny("new")))) == 0
    slow.admission.set()
    (nack,) = await bench.settle()
    assert isinstance(nack, Command.SendDatagram)
    assert nack.data == NACK_WEB
    assert bench.totals.registrations == 0
    bench.sessions.stop()


async def test_a_grant_ends_unless_it_is_granted_anew(tasks: set[asyncio.Task[None]]) -> None:
    policy = Scripted(Allow("first", valid_until=START + timedelta(seconds=0.02)))
    bench = make(policy, tasks)
    bench.connect(1)
    bench.send(1)
    assert bench.kinds(await bench.settle()) == ["SetLimits", "SetAgent", "SendDatagram"]
    policy.answer = Allow("second", valid_until=START + timedelta(seconds=3_600))
    bench.now += timedelta(seconds=0.02)
    async with asyncio.timeout(10):
        while len(policy.asked) < 2:  # noqa: ASYNC110 - the timer decides when
            await asyncio.sleep(0.001)
    assert await bench.settle() == []
    bench.now += timedelta(seconds=3_600)
    # The same answer again is over by now.
    bench.sessions.registrations._grants._deadlines._fire()
    assert bench.kinds(await bench.settle()) == ["SetAgent", "Close"]
    assert bench.totals.revoked["expired"] == 1
    bench.sessions.stop()


async def test_a_grant_that_has_ended_already_is_none(tasks: set[asyncio.Task[None]]) -> None:
    bench = make(Scripted(Allow("late", valid_until=START)), tasks)
    bench.connect(1)
    bench.send(1)
    (nack,) = await bench.settle()
    assert isinstance(nack, Command.SendDatagram)
    assert nack.data == NACK_WEB
    bench.sessions.stop()


async def test_a_certificate_is_cut_at_its_end(tasks: set[asyncio.Task[None]]) -> None:
    bench = make(rules(WEB), tasks)
    for conn in (1, 2):
        bench.connect(conn, b"ann|60")
        bench.send(conn)
    bench.take()
    bench.now += timedelta(seconds=60)
    bench.sessions.connections._expiries._fire()
    assert bench.kinds(bench.take()) == ["SetAgent", "Close", "SetAgent", "Close"]
    assert bench.totals.disconnected["expired"] == 2
    bench.sessions.stop()


async def test_a_rule_for_a_network_holds_when_the_peer_moves(tasks: set[asyncio.Task[None]]) -> None:
    bench = make(rules(WEB | {"network": ["198.51.100.0/24"]}), tasks)
    bench.connect(1)
    bench.send(1)
    bench.take()
    bench.sessions.dispatch(Event.AddressChanged(1, ("198.51.100.9", 4_000)))
    assert await bench.settle() == []
    bench.sessions.dispatch(Event.AddressChanged(1, ("203.0.113.9", 4_000)))
    assert bench.kinds(await bench.settle()) == ["SetAgent", "Close"]
    bench.sessions.stop()


async def test_a_peer_that_keeps_moving_is_asked_about_once_at_a_time(tasks: set[asyncio.Task[None]]) -> None:
    policy = Scripted(Allow("any"))
    bench = make(policy, tasks)
    bench.connect(1)
    bench.send(1)
    await bench.settle()
    policy.admission.clear()
    before = len(tasks)
    for number in range(100):
        bench.sessions.dispatch(Event.AddressChanged(1, (f"198.51.100.{number + 2}", 4_000)))
        await bench.settle()
    assert len(tasks) == before + 1
    assert len(policy.asked) == 2
    policy.answer = Deny("not from there")
    policy.admission.set()
    assert bench.kinds(await bench.settle()) == ["SetAgent", "Close"]
    assert len(policy.asked) == 3, "once more, for where it is in the end"
    assert str(policy.asked[-1].peer.address.host) == "198.51.100.101"
    # Another port of the same host is nobody else.
    bench.connect(2)
    policy.answer = Allow("any")
    bench.send(2)
    await bench.settle()
    bench.sessions.dispatch(Event.AddressChanged(2, ("198.51.100.1", 9)))
    await bench.settle()
    assert len(policy.asked) == 4
    bench.sessions.stop()


async def test_a_rule_that_comes_into_force_counts_at_the_next_try(tasks: set[asyncio.Task[None]]) -> None:
    bench: Bench
    later = WEB | {"not-before": START + timedelta(hours=1)}
    bench = make(rules(later, clock=lambda: bench.now), tasks)
    bench.connect(1)
    bench.send(1)
    (nack,) = bench.take()
    assert isinstance(nack, Command.SendDatagram)
    assert nack.data == NACK_WEB
    bench.now += timedelta(hours=1)
    bench.send(1)
    assert bench.kinds(bench.take()) == ["SetLimits", "SetAgent", "SendDatagram"]
    bench.sessions.stop()


async def test_a_rule_that_denies_from_a_moment_on_revokes_then(tasks: set[asyncio.Task[None]]) -> None:
    bench: Bench
    freeze: dict[str, object] = {"name": "freeze", "effect": "deny", "peers": "anyone", "agent": ["*"]}
    freeze |= {"not-before": START + timedelta(hours=1)}
    bench = make(rules(freeze, WEB, clock=lambda: bench.now), tasks)
    bench.connect(1)
    bench.send(1)
    bench.take()
    bench.now += timedelta(hours=1)
    bench.sessions.registrations._grants._deadlines._fire()
    assert bench.kinds(await bench.settle()) == ["SetAgent", "Close"]
    assert bench.totals.revoked["expired"] == 1
    bench.sessions.stop()


async def test_a_policy_that_fails_at_the_reauthorization_denies(tasks: set[asyncio.Task[None]]) -> None:
    class Failing(Policy):
        @override
        async def authorize(self, registration: Registration) -> Decision:
            raise RuntimeError

    bench = make(rules(WEB), tasks)
    bench.connect(1)
    bench.send(1)
    bench.take()
    assert await bench.sessions.registrations.use_policy(Guard(Failing())) == 1
    assert bench.kinds(bench.take()) == ["SetAgent", "Close"]
    bench.sessions.stop()


async def test_a_valid_until_without_zone_is_a_failure_of_the_policy(tasks: set[asyncio.Task[None]]) -> None:
    naive = Allow("x", valid_until=datetime(2027, 1, 1))  # noqa: DTZ001
    bench = make(Scripted(naive), tasks)
    bench.connect(1)
    bench.send(1)
    assert await bench.settle() == []
    assert bench.totals.denied == 1
    bench.sessions.stop()


async def test_one_connection_too_many_is_told_no(tasks: set[asyncio.Task[None]]) -> None:
    bench = make(rules(WEB | {"limits": {"connections": 1}}), tasks)
    assert parse_rules([WEB | {"limits": {"connections": 1}}]).rules[0].limits == Limits(connections=1)
    for conn in (1, 2):
        bench.connect(conn, b"ann")
        bench.send(conn)
    *_, nack = bench.take()
    assert isinstance(nack, Command.SendDatagram)
    assert (nack.conn, nack.data) == (2, NACK_WEB)
    assert bench.totals.over_limit["connections"] == 1
    bench.sessions.stop()
