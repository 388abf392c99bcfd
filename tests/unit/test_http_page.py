"""docs/http.md has what the routes really answer."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import httpx
import pytest
from tests.unit.admin import FakeOperations
from tests.unit.sessions_rig import rig
from tests.unit.test_operations import operations
from tools.http_reference import CLIENT, CLIENTS, RECORD, RELOAD, STATUS, routes

from intermediate_server.admin import create_app
from intermediate_server.client import metrics
from intermediate_server.server.reload import Outcome as ReloadOutcome
from intermediate_server.signaling import Outcome, Reason
from intermediate_server.signaling.records import Record, Side
from intermediate_server.types import Address

TOKEN = "a token of the state directory"


class Refusing(FakeOperations):
    """Operations whose reload is refused."""

    async def reload(self, why: str) -> ReloadOutcome:
        return replace(await super().reload(why), error="no")


def ready(_: FakeOperations) -> None:
    """Change nothing."""


def stuck(asked: FakeOperations) -> None:
    """Have the engine stand still."""
    asked.state.turning = lambda: False


async def test_each_route_answers_with_the_statuses_on_the_page() -> None:
    declared = {(route.path, int(status)) for route in routes() for status in route.responses}
    cases: list[tuple[type[FakeOperations], Callable[[FakeOperations], None], str]] = [
        (FakeOperations, ready, TOKEN),
        (FakeOperations, stuck, TOKEN),
        (FakeOperations, ready, "another"),
        (Refusing, ready, TOKEN),
    ]
    seen: set[tuple[str, int]] = set()
    for kind, prepare, token in cases:
        asked = kind(token=TOKEN)
        prepare(asked)
        transport = httpx.ASGITransport(app=create_app(asked))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            for route in routes():
                for conn in ("1", "10"):
                    (method,) = (route.methods or set()) - {"HEAD"}
                    path = route.path.replace("{conn}", conn)
                    answer = await http.request(method, path, headers={"Authorization": f"Bearer {token}"})
                    seen.add((route.path, answer.status_code))
                    if route.path == "/reload" and answer.status_code != 403:
                        assert set(answer.json()) == set(RELOAD)
    assert seen == declared


def test_the_page_has_the_statuses_of_agents_and_connectors() -> None:
    answered = set(re.findall(r'"(\d{3}) [A-Z]', inspect.getsource(metrics)))
    assert answered == set(re.findall(r"\b[2-5]\d\d\b", CLIENTS))


async def test_the_keys_of_the_answers(tmp_path: Path) -> None:
    async with rig() as r:
        asked = operations(r, tmp_path)
        r.engine.counter_values = {"half_open": 0}
        await r.connect(1)
        assert set(asked.status()) == set(STATUS)
        (client,) = asked.clients()["clients"]
        assert set(client) == set(CLIENT)
        await asked.addresses.aclose()


def test_the_keys_of_a_session() -> None:
    side = Side(identity=None, address=Address(IPv4Address("192.0.2.1"), 1), candidates=None, report=None)
    record = Record(0, 1, "web", side, None, None, None, 0, None, None, Outcome.REFUSED, Reason.OFF, "")
    assert set(record.as_dict()) == set(RECORD)
    assert all(f"`{key}`" in RECORD["agent"] for key in side.as_dict())


@pytest.mark.parametrize("outcome", Outcome)
def test_the_outcomes_of_a_session(outcome: Outcome) -> None:
    assert f"`{outcome}`" in RECORD["outcome"]
