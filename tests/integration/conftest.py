"""The real server as a process of its own, on an ephemeral port."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from intermediate_server.client import ClientEngine
from intermediate_server.testing import Relay
from intermediate_server.testing.plugin import (
    Programs,
    programs,
    start_agent,
    start_application,
    start_connector,
    start_relay,
)
from intermediate_server.testing.programs import PATIENCE
from intermediate_server.types import Role

if TYPE_CHECKING:
    from tests.integration.site import Site

__all__ = [
    "PATIENCE",
    "Server",
    "StartServer",
    "programs",
    "start_agent",
    "start_application",
    "start_connector",
    "start_relay",
]


class Server(Relay):
    """A relay that makes certificates by their names."""

    issued = 0

    def certificate(self, names: list[str]) -> tuple[Path, Path]:
        """A client certificate with these ``.ztna`` names, and its key."""
        self.issued += 1
        role = Role(names[0].split(".")[0])
        services = [name.removesuffix(".ztna").split(".", 1)[1] for name in names]
        return self.issue(role, f"peer-{self.issued}", services)

    async def metric(self, sample: str) -> float:
        """A sample of its metrics, named as the exposition writes it."""
        line = await self.wait_log("Admin listening on")
        async with httpx.AsyncClient() as http:
            text = (await http.get(f"http://{line['host']}:{line['port']}/metrics")).text
        return float(next(found for found in text.splitlines() if found.startswith(f"{sample} ")).split()[-1])

    async def wait_metric(self, sample: str, value: float) -> None:
        """Wait until a sample has reached ``value``."""
        async with asyncio.timeout(PATIENCE):
            while await self.metric(sample) < value:  # noqa: ASYNC110 - another process decides when
                await asyncio.sleep(0.02)


StartServer = Callable[..., Awaitable[Server]]


@pytest.fixture
async def start_server(programs: Programs, tmp_path: Path) -> StartServer:
    """Starts servers with the given flags on 127.0.0.1, each with a state directory of its own."""
    numbers = itertools.count()

    async def start(*flags: str, bind: str = "127.0.0.1", port: int = 0, state_dir: Path | None = None) -> Server:
        directory = state_dir or tmp_path / f"state-{next(numbers)}"
        return await programs.keep(Server.begin(directory, *flags, bind=bind, port=port))

    return start


@pytest.fixture
async def engine() -> AsyncIterator[ClientEngine]:
    async with ClientEngine() as engine:
        yield engine


@pytest.fixture
def site(tmp_path: Path, start_server: StartServer, engine: ClientEngine) -> Site:
    """A server whose configuration file a test rewrites, and the peers that come to it."""
    from tests.integration.site import Site

    return Site(tmp_path, start_server, engine)
