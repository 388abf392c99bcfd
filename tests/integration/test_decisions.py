"""What is written about decisions: every one, with who and by which rule, in the audit log and in the ordinary one."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from intermediate_server import audit
from intermediate_server.access.admission import Admission
from intermediate_server.client import Connection
from intermediate_server.errors import ConnectionClosed, RegistrationError
from intermediate_server.pki import Revocations, keys
from intermediate_server.policy import Guard, Policy, RulesPolicy
from intermediate_server.policy.rules_file import parse_rules
from intermediate_server.sessions import decision_log
from intermediate_server.sessions.decision_log import WINDOW, Decisions
from intermediate_server.types import Address, ConnectionId, Identity, Peer, Role
from tests.integration.live import Live, live
from tests.integration.site import closed

FEW = 4
"""Lines of a kind in these tests."""


def rules(name: str, **keys_and_values: object) -> RulesPolicy:
    table: dict[str, object] = {"name": name, "peers": "anyone", "agent": ["*"], "connector": ["*"], **keys_and_values}
    return RulesPolicy(parse_rules([table]))


class Written:
    """The audit lines, there once the server has ended."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, *fields: str, **wanted: object) -> list[tuple[Any, ...]]:
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [
            tuple(line.get(field) for field in fields)
            for line in lines
            if all(line.get(field) == wanted[field] for field in wanted)
        ]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    # These tests move the clock, and lines are not to wait for it.
    monkeypatch.setattr(audit, "DELAY", 0.0)
    return Written(tmp_path / "audit")


@asynccontextmanager
async def audited(written: Written, policy: Policy | None = None, **options: Any) -> AsyncIterator[Live]:
    log = audit.Audit(written.path)
    async with live(written.path.parent, policy, audit=log, registration_timeout=1e6, **options) as server:
        yield server
    await log.aclose()


async def ask(connection: Connection, *services: str) -> None:
    """Register as agent, whatever the answers are."""
    for service in services:
        with suppress(RegistrationError):
            await connection.register(Role.AGENT, service)


async def test_a_reauthorization_that_changes_rule_or_limits_is_a_decision(written: Written) -> None:
    async with audited(written, rules("old")) as server:
        await ask(await server.dial(), "web")
        for policy in (
            rules("old"),
            rules("new"),
            rules("new", limits={"connections": 3}),
            rules("none", effect="deny"),
        ):
            await server.sessions.registrations.use_policy(Guard(policy))
    assert written("decision", "cause", "rule", "reason") == [
        ("allowed", "policy", "old", None),
        ("allowed", "reauthorization", "new", "until now by 'old'"),
        ("allowed", "reauthorization", "new", "its limits have changed"),
        ("revoked", "policy", "none", "denied by rule 'none'"),
        ("disconnected", "access", None, "nothing it had registered is allowed any more"),
    ]


@pytest.mark.parametrize("named", [False, True])
async def test_connecting_again_renews_no_lines(written: Written, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    monkeypatch.setattr(decision_log, "LINES", 1)
    policy = RulesPolicy(parse_rules([{"name": "web", "peers": "anyone", "agent": ["web"]}]))
    with capture_logs() as logs:
        async with audited(written, policy) as server:
            cert = server.certificate("agent.x.ztna") if named else None
            for number in range(6):
                peer = await server.dial(cert)
                await ask(peer, "web", f"a{number}", f"b{number}")
                await server.leave(peer)
            # Another has lines of its own.
            other = await server.dial(server.certificate("agent.y.ztna"))
            await ask(other, "web", "c")
            server.later(WINDOW)
            peer = await server.dial(cert)
            await ask(peer, "d")
    # Four times as many where many clients of a source have something in common.
    assert written("service", decision="denied", cause="policy") == [("a0",), ("c",), ("d",)]
    assert written("service", decision="allowed", cause="policy") == [("web",)] * (FEW + 1)
    assert written("decision", "count", cause="more") == [("allowed", 2), ("denied", 11)]
    begun = [line for line in logs if line["event"].startswith("New connection")]
    assert [line["log_level"] for line in begun] == ["info"] * FEW + ["debug"] * (6 - FEW) + ["info"] * 2
    ended = [line["log_level"] for line in logs if line["event"] == "Connection closed"]
    assert Counter(ended) == {"info": FEW + 2, "debug": 6 - FEW}
    assert {line["kind"]: line["count"] for line in logs if line["event"] == "More lines"} == {
        "allowed": 2,
        "denied": 11,
        "connection": 2,
        "report": 2,
    }


async def test_an_address_that_changes_all_the_time_has_few_lines(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_log, "LINES", 2)
    with capture_logs() as logs:
        async with audited(written) as server:
            peer = await server.dial(server.certificate("agent.x.ztna"))
            for _ in range(4):
                before = await peer.wait_observed()
                peer.rebind()
                await peer.wait_observed(other_than=before)
            await ask(peer, "denied")
    assert len([line for line in logs if line["event"].startswith("Address changed")]) == 2
    assert written("service", decision="denied") == [("denied",)], "another kind has lines of its own"


async def test_who_is_refused_again_and_again_has_few_lines(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "LINES", FEW)
    async with audited(written, admission=Admission(anonymous=False)) as server:
        for _ in range(FEW + 3):
            with suppress(ConnectionClosed):
                await server.dial()
        cert = server.certificate("agent.web.ztna")
        await ask(await server.dial(cert), "web")
        totals = server.sessions._totals.rejected
    assert totals["anonymous"] == FEW + 3
    assert written("cause", "count", decision="rejected") == [("anonymous", None)] * FEW + [("more", 3)]
    assert written("service", decision="allowed") == [("web",)]


async def test_many_together_have_a_number_of_lines_too(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "ALL_LINES", FEW)
    async with audited(written) as server:
        for number in range(FEW + 2):
            peer = await server.dial(server.certificate("agent.x.ztna"))
            await ask(peer, f"s{number}")
    assert written("service", decision="denied", cause="policy") == [(f"s{number}",) for number in range(FEW)]
    assert written("decision", "address", "identity", "count", cause="more") == [("denied", None, None, 2)]


async def test_a_cut_says_what_was_lost_with_it(written: Written) -> None:
    async with audited(written) as server:
        cert = server.certificate("agent.web.ztna", "agent.db.ztna")
        peer = await server.dial(cert)
        await ask(peer, "web", "db")
        fingerprint = keys.load_certificates(cert[0])[0].fingerprint(keys.SHA256).hex()
        denied = Revocations(fingerprints=frozenset([fingerprint]))
        assert server.sessions.use_admission(Admission(revocations=denied)) == 1
        assert (await closed(peer))[0] == 4
    lost = [{"role": "agent", "service": name} for name in ("web", "db")]
    assert written("cause", "lost", decision="disconnected") == [("revoked", lost)]


@pytest.mark.parametrize("named", [False, True])
async def test_the_ordinary_log_says_who_and_by_which_rule(written: Written, named: bool) -> None:
    who: dict[str, object] = {"identity": "anonymous"}
    with capture_logs() as logs:
        async with audited(written, rules("staff", connector=[])) as server:
            cert = server.certificate("agent.web.ztna") if named else None
            if cert is not None:
                fingerprint = keys.load_certificates(cert[0])[0].fingerprint(keys.SHA256).hex()
                who = {"identity": fingerprint, "subject": "CN=peer-1"}
            peer = await server.dial(cert)
            who["peer"] = str(await peer.wait_observed())
            await ask(peer, "web")
            with pytest.raises(RegistrationError):
                await peer.register(Role.CONNECTOR, "web")
            await server.sessions.registrations.use_policy(Guard(rules("nobody", effect="deny")))
    told = {line["event"]: line for line in logs if line["event"].startswith("Registration")}
    assert {event: line["rule"] for event, line in told.items()} == {
        "Registration: Agent for service 'web'": "staff",
        "Registration denied: Connector for service 'web'": "default",
        "Registration revoked: Agent for service 'web'": "nobody",
    }
    (disconnected,) = (line for line in logs if line["event"].endswith(" disconnected"))
    assert disconnected["reason"] == "nothing it had registered is allowed any more"
    for line in (*told.values(), disconnected):
        assert line.items() >= who.items()


async def test_nothing_is_lost_however_many_there_are(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines and counts add up to what has happened, with more peers than are kept and hours that end."""
    for name, number in (("LINES", 3), ("ALL_LINES", 40), ("OWNERS", 5)):
        monkeypatch.setattr(decision_log, name, number)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    chance, now, loop = random.Random(7), 0.0, asyncio.get_running_loop()
    log = audit.Audit(written.path)
    made = Decisions(log)
    real = loop.time()
    monkeypatch.setattr(loop, "time", lambda: real + now)
    happened: Counter[str] = Counter()
    for conn in range(2_000):
        key = bytes([chance.randrange(9)]) * 32
        identity = Identity(
            fingerprint="", key_hash=key, subject="", dns_names=(), uris=(), not_before=moment, not_after=moment
        )
        named = identity if chance.random() < 0.5 else None
        host = ip_address(f"192.0.2.{chance.randrange(9)}")
        peer = Peer(ConnectionId(conn), Address(host, 1), named)
        decision = chance.choice(["allowed", "denied", "revoked"])
        happened[decision] += 1
        made.registration(decision, peer, (Role.AGENT, "web"), cause="policy", rule="")
        assert len(made._windows) <= 6
        now += chance.choice([0.0, 30.0])
    made.stop()
    assert not made._windows
    monkeypatch.undo()
    await log.aclose()
    counted: Counter[str] = Counter()
    for decision, count in written("decision", "count"):
        counted[decision] += 1 if count is None else count
    assert counted == happened
