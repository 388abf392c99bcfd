"""What an operator can ask of a server and do to it."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

from tests.unit.admin import new_status
from tests.unit.sessions_rig import Rig, closed, rig
from tests.unit.settings import load

from intermediate_server.access.admission import Admission
from intermediate_server.access.explain import AccessQuery
from intermediate_server.access.usage import MonthlyUsage
from intermediate_server.admin import create_app
from intermediate_server.audit import Audit
from intermediate_server.config import Settings
from intermediate_server.engine import Engine
from intermediate_server.join.totals import JoinTotals
from intermediate_server.policy import Deny
from intermediate_server.server.drain import Stopping
from intermediate_server.server.operations import DISCONNECTED, Operations
from intermediate_server.server.reload import Reloader
from intermediate_server.server.reserved_addresses import Addresses
from intermediate_server.types import Role
from intermediate_server.wire import close_codes


def operations(r: Rig, state: Path) -> Operations:
    """The operations of sessions on a fake engine."""
    settings: Settings = load({"state_dir": str(state)}, env={}, files=())
    status = new_status()

    def never(_: object) -> tuple[object, int]:
        raise AssertionError

    engine: Engine = r.engine  # type: ignore[assignment]  # it has the same interface
    return Operations(
        engine=engine,
        bridge=r.bridge,
        sessions=r.sessions,
        registry=r.registry,
        totals=r.totals,
        state=status,
        reloader=Reloader(
            settings=settings,
            admission=Admission(),
            read=lambda: settings,
            status=status,
            apply=never,  # type: ignore[arg-type]  # not called
        ),
        stopping=Stopping(),
        audit=Audit(None),
        usage=MonthlyUsage(None),
        addresses=Addresses(state),
        joins=JoinTotals(),
        token="",
    )


async def test_questions(tmp_path: Path) -> None:
    async with rig() as r:
        asked = operations(r, tmp_path)
        r.engine.counter_values = {"half_open": 3}
        await r.connect(1)
        await r.connect(2)
        await r.register(1, Role.AGENT, "web")
        await r.register(2, Role.CONNECTOR, "web")
        await r.register(2, Role.CONNECTOR, "db")
        assert asked.services() == {"db": {"agents": 0, "connectors": 1}, "web": {"agents": 1, "connectors": 1}}
        assert (asked.status()["half_open"], asked.status()["anonymous_clients"]) == (3, 2)
        assert [client["conn"] for client in asked.clients()["clients"]] == [1, 2]
        assert asked.anonymous()["total"] == 2
        assert asked.numbers().counts.services == 2
        assert create_app(asked).routes
        await asked.addresses.aclose()


async def test_explain_asks_the_settings_in_force(tmp_path: Path) -> None:
    async with rig() as r:
        asked = operations(r, tmp_path)
        query = AccessQuery(certificate=None, role=Role.AGENT, service="web", source=IPv4Address("192.0.2.1"))
        assert isinstance((await asked.explain(query)).decision, Deny)
        await asked.addresses.aclose()


async def test_disconnect_ends_one_connection_once(tmp_path: Path) -> None:
    async with rig() as r:
        asked = operations(r, tmp_path)
        await r.connect(1)
        await r.connect(2)
        await r.register(1, Role.AGENT, "web")
        before = len(r.engine.batches)
        assert asked.disconnect(1)
        assert not asked.disconnect(1), "it is on its way out"
        assert not asked.disconnect(7)
        await r.settle()
        assert r.told_since(before) == [("agent", 1, []), ("close", 1, close_codes.SHUTTING_DOWN, DISCONNECTED)]
        assert r.totals.disconnected["operator"] == 1
        await r.happen(closed(1, cause="local"))
        assert list(r.sessions.live) == [2]
        assert asked.services() == {}
        await asked.addresses.aclose()


async def test_drain_asked_twice_is_in_a_hurry(tmp_path: Path) -> None:
    async with rig() as r:
        asked = operations(r, tmp_path)
        asked.drain()
        assert (asked.stopping.asked.is_set(), asked.stopping.hurry.is_set()) == (True, False)
        asked.drain()
        assert asked.stopping.hurry.is_set()
        await asked.addresses.aclose()
