"""The admin application over operations without a server, on an engine that only counts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.fake_engine import FakeEngine

from intermediate_server.admin import Numbers, Status, create_app
from intermediate_server.engine import ServiceCounters
from intermediate_server.engine.lag import LoopLag
from intermediate_server.registry import Registry
from intermediate_server.server.reload import Outcome
from intermediate_server.sessions.totals import SessionTotals


def new_status() -> Status:
    """The state of a server that takes clients."""
    return Status(client_auth="required", accepting=True)


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

    def direct(self) -> dict[str, Any]:
        return {"open": {}, "ended": []}

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


@dataclass
class Service:
    """What the metrics read of a service."""

    service: bytes
    drops: dict[str, int] = field(default_factory=dict)
    connectors: int = 0
    healthy: int = 0
    to_connector_packets: int = 0
    to_connector_bytes: int = 0
    to_agent_packets: int = 0
    to_agent_bytes: int = 0


class Admin:
    """The application and everything it reads."""

    def __init__(self) -> None:
        self.operations = FakeOperations(dispatch_errors=4)
        self.engine = self.operations.engine
        self.status = self.operations.state
        self.totals = self.operations.totals
        self.lag = self.operations.lag
        self.app: FastAPI = create_app(self.operations)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app), base_url="http://localhost")

    def serve(self, *services: Service) -> None:
        self.engine.service_values = cast("list[ServiceCounters]", list(services))

    async def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Every sample of a scrape by name and labels."""
        text = (await self.http.get("/metrics")).text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def value(self, name: str, **labels: str) -> float:
        return (await self.samples())[name, frozenset(labels.items())]
