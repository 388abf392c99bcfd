"""Local ports through a real relay process to applications: the userspace edges of agent and connector."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator

import pytest

from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE, Server, StartServer
from tests.integration.edges import (
    Application,
    EdgeEngine,
    application,
    connected,
    tcp_backend,
    tcp_forward,
)

BODY = os.urandom(1 << 16)


@pytest.fixture
async def edges() -> AsyncIterator[EdgeEngine]:
    async with EdgeEngine() as engine:
        yield engine


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


async def blocks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers a number with so many bodies, and its own end."""
    count = int(await reader.readline())
    for _ in range(count):
        writer.write(BODY)
        await writer.drain()


async def through(edges: EdgeEngine, server: Server, app: Application) -> tuple[int, int, tuple[str, int]]:
    """A forward to an application; the edges of connector and agent, and the local port."""
    backends = await edges.open_backends([tcp_backend(app.address)])
    forwards, [port] = await edges.open_forwards([tcp_forward()])
    await edges.attach(backends, await connected(edges, server, Role.CONNECTOR, "web"))
    await edges.attach(forwards, await connected(edges, server, Role.AGENT, "web"), ["web"])
    return backends, forwards, port


async def exchange(port: tuple[str, int], data: bytes) -> bytes:
    """What comes back for ``data`` and the end of it."""
    reader, writer = await asyncio.open_connection(*port)
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()


async def test_a_download_is_complete(start_server: StartServer, edges: EdgeEngine) -> None:
    server = await start_server("--client-auth", "off")
    async with application(blocks) as app:
        *_, port = await through(edges, server, app)
        async with asyncio.timeout(PATIENCE):
            data = await exchange(port, b"320\n")
        assert hashlib.sha256(data).digest() == hashlib.sha256(BODY * 320).digest()


async def test_an_upload_comes_back(start_server: StartServer, edges: EdgeEngine) -> None:
    server = await start_server("--client-auth", "off")
    async with application(echo) as app:
        *_, port = await through(edges, server, app)
        async with asyncio.timeout(PATIENCE):
            assert await exchange(port, BODY * 20) == BODY * 20
