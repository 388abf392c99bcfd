"""Requests of the engine are answered from a thread, and what is written of them has a bound."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.unit.issuing import Relays, der_of, leaf_of, signing_request

from intermediate_server.audit import Audit
from intermediate_server.engine import Command, Event
from intermediate_server.join import messages
from intermediate_server.join.issuer import Issuer
from intermediate_server.join.messages import Answer, Issued, Left, Refused, encode, parse_answer
from intermediate_server.pki import keys
from intermediate_server.server import joining
from intermediate_server.server.join_log import JoinLog
from intermediate_server.server.joining import WAITING, Joining

ADDRESS = ("192.0.2.7", 50_000)


@dataclass
class Bench:
    """Joining over an issuer, without an engine."""

    relay: Relays
    joining: Joining
    now: list[float]
    """The monotonic clock of the log."""
    revoked: list[str] = field(default_factory=list)
    connected: set[str] = field(default_factory=set)
    replies: dict[int, tuple[Answer, bool]] = field(default_factory=dict)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0

    def submit(self, *commands: Command) -> None:
        for command in commands:
            assert isinstance(command, Command.JoinReply)
            self.replies[command.request] = (parse_answer(bytes(command.data)), command.refused)
            self.arrived.set()

    def send(self, data: bytes, certificate: bytes | None = None) -> int:
        self.asked += 1
        self.joining.request(Event.JoinRequest(self.asked, ADDRESS, certificate, data))
        return self.asked

    async def ask(self, data: bytes, certificate: bytes | None = None) -> tuple[Answer, bool]:
        """The answer, and whether it counts as a failure of its source."""
        request = self.send(data, certificate)
        async with asyncio.timeout(10):
            while request not in self.replies:
                self.arrived.clear()
                await self.arrived.wait()
        return self.replies[request]

    def token_request(self, **options: Any) -> bytes:
        token = self.relay.token(**options)
        return encode(messages.Join(token.id, token.secret, signing_request(keys.new_key()), "office", "1"))


WRONG = encode(messages.Join(bytes(6), bytes(20), signing_request(keys.new_key()), "office", "1"))


@asynccontextmanager
async def bench(directory: Path, audit: Audit | None = None) -> AsyncIterator[Bench]:
    relay = Relays(directory / "state")
    made: Bench
    now = [0.0]

    def revoke(fingerprints: Collection[str]) -> None:
        made.revoked.extend(fingerprints)

    log = JoinLog(audit or Audit(), lambda _kind, _peer: True, clock=lambda: now[0])
    joins = Joining(
        submit=lambda *commands: made.submit(*commands),  # noqa: PLW0108 - it is made below
        log=log,
        revoke=revoke,
        connected=lambda: frozenset(made.connected),
        store=relay.store,
        clock=lambda: relay.now.timestamp(),  # noqa: PLW0108 - it moves
    )
    made = Bench(relay, joins, now)
    joins.use(relay.issuer)
    try:
        yield made
    finally:
        joins.stop()
        relay.store.close()


async def test_a_join_is_answered_and_counted(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        answer, failure = await made.ask(made.token_request())
        assert isinstance(answer, Issued) and not failure
        answer, failure = await made.ask(WRONG)
        assert isinstance(answer, Refused) and failure
        await made.ask(b"{")
        assert made.joining.totals.joins == {"ok": 1, "unknown": 1, "malformed": 1}


async def test_where_nothing_issues_the_answer_says_so(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        made.joining.use(None)
        answer, failure = await made.ask(WRONG)
        assert isinstance(answer, Refused)
        assert (answer.cause, answer.again, failure) == ("off", True, False)


async def test_more_requests_than_may_wait_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(tmp_path) as made:
        for _ in range(WAITING):
            made.send(WRONG)
        over = made.send(WRONG)
        # The loop has not turned, so the thread's answers are still to come.
        answer, failure = made.replies[over]
        assert isinstance(answer, Refused)
        assert (answer.cause, answer.again, failure) == ("busy", True, False)
        await until(lambda: len(made.replies) == WAITING + 1)
        monkeypatch.setattr(joining, "PATIENCE", -1.0)
        late, _ = await made.ask(WRONG)
        assert isinstance(late, Refused)
        assert late.cause == "busy"


async def test_leaving_cuts_the_identity_at_once(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        issued, _ = await made.ask(made.token_request())
        left, _ = await made.ask(encode(messages.Leave()), der_of(issued))
        assert left == Left()
        assert made.revoked == [leaf_of(issued).fingerprint(keys.SHA256).hex()]
        assert made.joining.totals.ended == {"left": 1}


async def test_an_ephemeral_identity_ends_by_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "SWEEP", 0.01)
    async with bench(tmp_path) as made:
        issued, _ = await made.ask(made.token_request(ephemeral=timedelta(hours=1)))
        fingerprint = leaf_of(issued).fingerprint(keys.SHA256).hex()
        running = asyncio.create_task(made.joining.run())
        try:
            made.connected.add(fingerprint)
            made.relay.later(hours=2)
            await until(lambda: made.joining.totals.identities.get("live") == 1)
            made.connected.clear()
            # A sweep may still have it as connected.
            for _ in range(2):
                await swept(made)
            made.relay.later(hours=2)
            # A relay that has just started lets those come back who could not be connected meanwhile.
            for _ in range(2):
                await swept(made)
            assert made.revoked == []
            monkeypatch.setattr(joining, "GRACE", 0.0)
            await until(lambda: made.joining.totals.identities.get("ended") == 1)
            assert set(made.revoked) == {fingerprint}
            assert made.joining.totals.ended == {"ephemeral": 1}
        finally:
            running.cancel()


async def test_a_store_that_cannot_be_used_is_a_trouble_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "SWEEP", 0.01)
    async with bench(tmp_path) as made:
        request = made.token_request()
        database = made.relay.directory / "identity.db"
        with_all = made.relay.directory / "kept.db"
        with sqlite3.connect(database) as db:
            db.execute("VACUUM INTO ?", (str(with_all),))
        db.close()
        for name in ("identity.db", "identity.db-wal", "identity.db-shm"):
            (made.relay.directory / name).unlink(missing_ok=True)
        database.write_bytes(b"no database" * 1000)
        with capture_logs() as logs:
            for _ in range(3):
                answer, failure = await made.ask(request)
                assert isinstance(answer, Refused)
                assert (answer.cause, failure) == ("unavailable", False)
        assert len([line for line in logs if line["log_level"] == "error"]) == 1
        assert "damaged" in made.joining.describe()[1][0]
        for name in ("identity.db", "identity.db-wal", "identity.db-shm"):
            (made.relay.directory / name).unlink(missing_ok=True)
        with_all.rename(database)
        running = asyncio.create_task(made.joining.run())
        try:
            await until(lambda: made.joining.describe()[1] == ())
        finally:
            running.cancel()
        answer, _ = await made.ask(request)
        assert isinstance(answer, Issued)


async def test_a_ca_without_its_key_is_a_trouble_before_anybody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "SWEEP", 0.01)
    async with bench(tmp_path) as made:
        key = made.relay.directory / "ca.key"
        away = key.rename(tmp_path / "away.key")
        running = asyncio.create_task(made.joining.run())
        try:
            await until(lambda: "ca.key" in "".join(made.joining.describe()[1]))
            answer, failure = await made.ask(made.token_request())
            assert isinstance(answer, Refused)
            assert (answer.cause, failure) == ("unavailable", False)
            # An answer for which nothing was signed says nothing about it.
            await made.ask(WRONG)
            assert made.joining.describe()[1]
            away.rename(key)
            await until(lambda: made.joining.describe()[1] == ())
        finally:
            running.cancel()


async def test_a_defect_of_the_issuer_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with bench(tmp_path) as made:
        monkeypatch.setattr(Issuer, "answer", broken)
        answer, failure = await made.ask(WRONG)
        assert isinstance(answer, Refused)
        assert (answer.cause, failure) == ("unavailable", False)
        assert "ZeroDivisionError" in made.joining.describe()[1][0]


async def test_refusals_have_ten_lines_in_a_minute_and_then_a_number(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        with capture_logs() as logs:
            for second in range(180):
                made.now[0] = float(second)
                for _ in range(3):
                    await made.ask(WRONG)
                made.joining._log.tick()
        times = [line for line in logs if "efused" in line["event"]]
        assert len(times) <= 30
        told = sum(line["count"] for line in times if line["event"].startswith("More"))
        assert told + len([line for line in times if line["event"].startswith("Refused")]) >= 360
        assert any(line.get("unknown") for line in times)


async def test_the_audit_log_has_every_join_renewal_refusal_and_leave(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    async with bench(tmp_path, audit) as made:
        request = made.token_request()
        issued, _ = await made.ask(request)
        await made.ask(WRONG)
        made.relay.later(days=8)
        key = keys.new_key()
        renewal = encode(messages.Renew(signing_request(key)))
        renewed, _ = await made.ask(renewal, der_of(issued))
        await made.ask(encode(messages.Leave()), der_of(renewed))
    await audit.aclose()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["decision"], line["cause"], line["request"]) for line in lines] == [
        ("issued", "join", "join"),
        ("refused", "unknown", "join"),
        ("issued", "late-renew", "late-renew"),
        ("left", "leave", "leave"),
    ]
    assert lines[0]["token"] == "000000000001"
    assert (lines[0]["name"], lines[0]["role"]) == ("office", "connector")
    assert lines[0]["fingerprint"] == leaf_of(issued).fingerprint(keys.SHA256).hex()
    assert lines[1]["token"] == "000000000000"
    assert lines[1]["reason"]
    assert lines[1]["address"] == "192.0.2.7:50000"


async def swept(made: Bench) -> None:
    """Wait for the end of a sweep."""
    before = made.joining.totals.identities
    await until(lambda: made.joining.totals.identities is not before)


async def until(condition: Any) -> None:
    """Wait for the thread and the loop."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - another thread decides when
            await asyncio.sleep(0.005)
