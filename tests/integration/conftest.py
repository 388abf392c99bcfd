"""The real server as a process of its own, on an ephemeral port."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from intermediate_server.client import ClientEngine
from intermediate_server.testing.plugin import (
    Programs,
    programs,
    start_agent,
    start_application,
    start_connector,
    start_relay,
)
from intermediate_server.testing.programs import PATIENCE
from tests.integration.server import Server
from tests.integration.shared import SharedServers, shared_servers
from tests.integration.tunnels import TunnelEngine

if TYPE_CHECKING:
    from tests.integration.site import Site

__all__ = [
    "PATIENCE",
    "Server",
    "SharedServers",
    "StartServer",
    "programs",
    "start_agent",
    "start_application",
    "start_connector",
    "start_relay",
]


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


@pytest.fixture(scope="module")
def share_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServers]:
    """Gives servers that nobody alters, one for each set of flags and module."""
    with shared_servers(tmp_path_factory.mktemp("shared")) as servers:
        yield servers


@pytest.fixture
def server(share_server: SharedServers) -> Server:
    """One that lets anybody in, and that no test of the module alters."""
    return share_server("--client-auth", "optional")


@pytest.fixture
async def tunnels() -> AsyncIterator[TunnelEngine]:
    async with TunnelEngine() as engine:
        yield engine
