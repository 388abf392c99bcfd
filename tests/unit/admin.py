"""The admin application over an engine that only counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import httpx
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.relay import new_status

from intermediate_server.admin import ServerCollector, create_app
from intermediate_server.engine import ServiceCounters
from intermediate_server.engine.fake import FakeEngine
from intermediate_server.engine.lag import LoopLag
from intermediate_server.registry import Counts, Registry
from intermediate_server.sessions.totals import SessionTotals


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
        self.engine = FakeEngine()
        self.engine.counter_values = {"half_open": 0, "ticks": 1}
        self.status = new_status()
        self.totals = SessionTotals()
        self.registry = Registry()
        self.lag = LoopLag()
        self.collector = ServerCollector(
            engine=self.engine,
            status=self.status,
            totals=self.totals,
            counts=self.counts,
            lag=self.lag,
            dispatch_errors=lambda: 4,
        )
        self.app: FastAPI = create_app(status=self.status, collector=self.collector, counters=self.engine.counters)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app), base_url="http://localhost")

    def counts(self) -> Counts:
        return self.registry.counts

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
