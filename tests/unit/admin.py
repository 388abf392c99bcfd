"""The admin application over an engine that only counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import httpx
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.operations import FakeOperations

from intermediate_server.admin import create_app
from intermediate_server.engine import ServiceCounters


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
