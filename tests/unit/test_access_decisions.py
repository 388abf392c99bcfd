"""What is written about decisions: every one, with who and by which rule, in the audit log and in the ordinary one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.unit.relay import HOST, Relay, certificate, closed, port_of, relay, wish

from intermediate_server.engine import Event
from intermediate_server.pki import Revocations, identity_of
from intermediate_server.policy import Guard, Policy, RulesPolicy
from intermediate_server.policy.rules_file import parse_rules
from intermediate_server.server import audit
from intermediate_server.server.access import Gate
from intermediate_server.server.decisions import LINES, WINDOW
from intermediate_server.server.session import ADDRESS_LINES
from intermediate_server.types import Role

Lines = list[dict[str, Any]]


def rules(name: str, **keys: object) -> RulesPolicy:
    table: dict[str, object] = {"name": name, "peers": "anyone", "agent": ["*"], "connector": ["*"], **keys}
    return RulesPolicy(parse_rules([table]))


class Written:
    """The audit lines, there once the relay has ended."""

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
async def audited(written: Written, policy: Policy | None = None) -> AsyncIterator[Relay]:
    log = audit.Audit(written.path)
    async with relay(policy, audit=log) as r:
        yield r
    await log.aclose()


async def test_a_review_that_changes_rule_or_limits_is_a_decision(written: Written) -> None:
    async with audited(written, rules("old")) as r:
        await r.connect(1)
        await r.register(1, Role.AGENT, "web")
        for policy in (
            rules("old"),
            rules("new"),
            rules("new", limits={"connections": 3}),
            rules("none", effect="deny"),
        ):
            await r.sessions.registrations.use_policy(Guard(policy))
    assert written("decision", "cause", "rule", "reason") == [
        ("allowed", "policy", "old", None),
        ("allowed", "review", "new", "until now by 'old'"),
        ("allowed", "review", "new", "its limits have changed"),
        ("withdrawn", "policy", "none", "denied by rule 'none'"),
        ("cut", "withdrawn", None, "nothing it had registered is allowed any more"),
    ]


async def test_denials_have_lines_whatever_else_a_peer_does_and_the_rest_are_counted(written: Written) -> None:
    with capture_logs() as logs:
        async with audited(written) as r:
            await r.connect(1, "agent.web.ztna")
            await r.register(1, Role.AGENT, "web")
            for number in range(ADDRESS_LINES + 10):
                await r.happen(Event.AddressChanged(1, (HOST, port_of(number))))
            for number in range(LINES + 44):
                if number % 100 == 0:
                    await r.later(1.0)
                await r.happen(wish(1, Role.AGENT, f"s{number}"))
            await r.later(WINDOW)
            await r.happen(wish(1, Role.AGENT, "later"))
            for number in range(LINES):
                if number % 100 == 0:
                    await r.later(1.0)
                await r.happen(wish(1, Role.AGENT, f"t{number}"))
            await r.happen(closed(1))
    assert len(written("service", decision="denied", cause="policy")) == 2 * LINES
    assert written("decision", "conn", "count", cause="more") == [("denied", 1, 44), ("denied", 1, 1)]
    assert [line["count"] for line in logs if line["event"] == "More decisions"] == [44, 1]


async def test_a_cut_says_what_was_lost_with_it(written: Written) -> None:
    der = certificate("agent.*.ztna")
    async with audited(written) as r:
        await r.happen(Event.Connected(1, None, (HOST, 1), [der], 1))
        await r.register(1, Role.AGENT, "web")
        await r.register(1, Role.AGENT, "db")
        denied = Revocations(fingerprints=frozenset([identity_of(der).fingerprint]))
        assert r.sessions.use_gate(Gate(revocations=denied)) == 1
    lost = [{"role": "agent", "service": name} for name in ("web", "db")]
    assert written("cause", "lost", decision="cut") == [("revoked", lost)]


@pytest.mark.parametrize("named", [False, True])
async def test_the_ordinary_log_says_who_and_by_which_rule(named: bool) -> None:
    who: dict[str, object] = {"identity": "anonymous"}
    certificates = []
    if named:
        certificates = [certificate("agent.web.ztna")]
        who = {"identity": identity_of(certificates[0]).fingerprint, "subject": "CN=peer"}
    with capture_logs() as logs:
        async with relay(rules("staff", connector=[])) as r:
            await r.happen(Event.Connected(1, None, (HOST, 1), certificates, 1))
            await r.register(1, Role.AGENT, "web")
            await r.register(1, Role.CONNECTOR, "web")
            await r.sessions.registrations.use_policy(Guard(rules("nobody", effect="deny")))
    told = {line["event"]: line for line in logs if line["event"].startswith("Registration")}
    assert {event: line["rule"] for event, line in told.items()} == {
        "Registration: Agent for service 'web'": "staff",
        "Registration refused: Connector for service 'web'": "default",
        "Registration withdrawn: Agent for service 'web'": "nobody",
    }
    (cut,) = (line for line in logs if line["event"].endswith(" cut"))
    assert cut["reason"] == "nothing it had registered is allowed any more"
    for line in (*told.values(), cut):
        assert line.items() >= {"conn": 1, "peer": f"{HOST}:1", **who}.items()
