"""Operations without a server: what the HTTP side is tested on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from tests.unit.fake_engine import FakeEngine
from tests.unit.relay import new_status

from intermediate_server.admin import Numbers, Status
from intermediate_server.engine.lag import LoopLag
from intermediate_server.registry import Registry
from intermediate_server.sessions.totals import SessionTotals


@dataclass
class Outcome:
    """What came of a reload."""

    error: str | None = None
    changed: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    revoked: int = 0
    closed: int = 0


def quiet_engine() -> FakeEngine:
    """An engine that turns and has nothing to do."""
    engine = FakeEngine()
    engine.counter_values = {"half_open": 0, "ticks": 1}
    return engine


@dataclass
class FakeOperations:
    """Answers from what a test has put into it, and counts the reloads."""

    engine: FakeEngine = field(default_factory=quiet_engine)
    state: Status = field(default_factory=new_status)
    totals: SessionTotals = field(default_factory=SessionTotals)
    registry: Registry = field(default_factory=Registry)
    lag: LoopLag = field(default_factory=LoopLag)
    dispatch_errors: int = 0
    token: str = ""
    hosts: Collection[str] = ()
    reloads: int = 0
    disconnected: list[int] = field(default_factory=list)

    def status(self) -> dict[str, Any]:
        return self.state.details(self.engine.counters()["half_open"])

    def clients(self) -> dict[str, Any]:
        return {"total": 0, "clients": []}

    def anonymous(self) -> dict[str, Any]:
        return {"total": 0, "clients": []}

    def numbers(self) -> Numbers:
        return Numbers(
            counters=self.engine.counters(),
            drops=self.engine.drops(),
            drops_by_class=self.engine.drops_by_class(),
            services=self.engine.services(),
            totals=self.totals,
            counts=self.registry.counts,
            lag=self.lag,
            dispatch_errors=self.dispatch_errors,
        )

    def disconnect(self, conn: int) -> bool:
        self.disconnected.append(conn)
        return conn < 10

    async def reload(self, why: str) -> Outcome:
        self.reloads += 1
        return Outcome()
