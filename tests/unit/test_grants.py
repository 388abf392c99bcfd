"""Grants are written in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.unit.sessions_rig import ack, nack, rig
from typing_extensions import override

import intermediate_server
from intermediate_server.policy import Allow, Decision, Deny, Policy
from intermediate_server.types import Registration, Role

SOURCE = Path(intermediate_server.__file__).parent
OWNER = SOURCE / "sessions" / "grants.py"
WRITES = {
    "_registry": {"register", "revoke", "close", "moved"},
    "_quotas": {"over_limit", "hold", "revoke", "close", "count"},
    "grants": {"clear", "pop", "popitem", "setdefault", "update"},
}
"""Methods that check or change what a grant stands in, by the attribute that they are called on."""


def writes(path: Path) -> Iterator[str]:
    """Places of a module that write a grant."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Attribute(attr=method, value=ast.Attribute(attr=owner))) if method in WRITES.get(
                owner, ()
            ):
                yield f"{path.name}:{node.lineno} {owner}.{method}"
            case ast.Subscript(value=ast.Attribute(attr="grants"), ctx=ast.Store() | ast.Del()):
                yield f"{path.name}:{node.lineno} grants[...]"


def test_one_module_writes_grants() -> None:
    others = [path for path in SOURCE.rglob("*.py") if path != OWNER]
    assert len(others) > 100
    assert [place for path in others for place in writes(path)] == []


def test_that_module_is_seen_to_write_them() -> None:
    seen = {place.split()[1] for place in writes(OWNER)}
    assert seen == {
        "_registry.register", "_registry.revoke", "_registry.close", "_registry.moved",
        "_quotas.over_limit", "_quotas.hold", "_quotas.revoke", "_quotas.close", "_quotas.count",
        "grants[...]", "grants.clear", "grants.pop",
    }  # fmt: skip


class Mixed(Policy):
    """Knows one service by heart, and has to ask for the others."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.tried: list[str] = []

    @override
    def decide(self, registration: Registration) -> Decision | None:
        self.tried.append(registration.service)
        return Allow("known") if registration.service == "web" else None

    @override
    async def authorize(self, registration: Registration) -> Decision:
        self.asked.append(registration.service)
        return Deny("asked", "asked")


async def test_a_policy_decides_at_once_where_it_can() -> None:
    policy = Mixed()
    async with rig(policy) as r:
        await r.connect(1)
        assert (await r.register(1, Role.AGENT, "web"))[-1] == ack(1, "web")
        assert policy.asked == []
        assert await r.register(1, Role.AGENT, "db") == [nack(1, "db")]
        assert policy.asked == ["db"]
        assert policy.tried == ["web", "db"], "it is not tried twice for one registration"
        assert await r.sessions.registrations.reauthorize_all() == 0
        assert policy.asked == ["db"], "what is known is not asked about again either"
