"""Pytest fixtures: relays, connectors, agents and applications as processes that end with the test.

Use them by ``pytest_plugins = ["intermediate_server.testing.plugin"]`` in the topmost ``conftest.py``, or by importing
what is needed there. They need pytest and pytest-asyncio, which this package does not install.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest_asyncio

from intermediate_server.client import ClientEngine
from intermediate_server.testing.programs import Agent, Application, Connector, Program, Relay

P = TypeVar("P", bound=Program)

StartRelay = Callable[..., Awaitable[Relay]]
StartConnector = Callable[..., Awaitable[Connector]]
StartAgent = Callable[..., Awaitable[Agent]]
StartApplication = Callable[[str], Awaitable[Application]]


class Programs:
    """Programs that end together."""

    def __init__(self) -> None:
        self._started: list[Program] = []

    async def keep(self, starting: Awaitable[P]) -> P:
        """Wait for the start of a program, and end it with the others."""
        program = await starting
        self._started.append(program)
        return program

    async def end(self) -> None:
        """End all of them."""
        await asyncio.gather(*(program.terminate() for program in reversed(self._started)))


@pytest_asyncio.fixture
async def programs() -> AsyncIterator[Programs]:
    """Programs of this test; they end with it."""
    started = Programs()
    yield started
    await started.end()


@pytest_asyncio.fixture
async def start_relay(programs: Programs, tmp_path: Path) -> StartRelay:
    """Starts relays on 127.0.0.1 with the given flags: ``await start_relay("--client-auth", "optional")``."""
    number = 0

    async def start(*flags: str) -> Relay:
        nonlocal number
        number += 1
        return await programs.keep(Relay.begin(tmp_path / f"relay-{number}", *flags))

    return start


@pytest_asyncio.fixture
async def start_connector(programs: Programs) -> StartConnector:
    """Starts connectors: ``await start_connector(relay, {"web": "tcp://127.0.0.1:8080"})``."""

    async def start(relay: Relay, backends: dict[str, str], *flags: str, name: str = "connector") -> Connector:
        return await programs.keep(Connector.begin(relay, backends, *flags, name=name))

    return start


@pytest_asyncio.fixture
async def start_agent(programs: Programs) -> StartAgent:
    """Starts agents: ``await start_agent(relay, [("tcp", "web")])``; see ``agent.addresses``."""

    async def start(relay: Relay, forwards: list[tuple[str, str]], *flags: str, name: str = "agent") -> Agent:
        return await programs.keep(Agent.begin(relay, forwards, *flags, name=name))

    return start


@pytest_asyncio.fixture
async def start_application(programs: Programs) -> StartApplication:
    """Starts applications: ``await start_application("http")``, or ``tcp-echo``, ``udp-echo``."""

    async def start(kind: str) -> Application:
        return await programs.keep(Application.begin(kind))

    return start


@pytest_asyncio.fixture
async def ztna_engine() -> AsyncIterator[ClientEngine]:
    """An engine for client connections of the test itself."""
    async with ClientEngine() as engine:
        yield engine
