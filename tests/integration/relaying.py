"""Agents and connectors of the client library at a server, and the packets they send."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from intermediate_server.client import ClientEngine, Connection
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE, Server

INNER = ("100.64.0.1", 5_000)


APPLICATION = ("10.0.0.5", 53)


INNER6 = ("fd64:7a74:6e61::1", 5_000)


APPLICATION6 = ("fd00:a::5", 53)


FAMILIES = pytest.mark.parametrize(("inner", "application"), [(INNER, APPLICATION), (INNER6, APPLICATION6)])


async def join(
    engine: ClientEngine, server: Server, role: Role, service: str = "web", *, cert: tuple[Path, Path] | None = None
) -> Connection:
    connection = await dial(engine, server, cert=cert)
    await connection.register(role, service)
    return connection


async def dial(engine: ClientEngine, server: Server, *, cert: tuple[Path, Path] | None = None) -> Connection:
    cert_file, key_file = cert or (None, None)
    return await engine.connect(
        server.address, ca_file=server.ca_file, server_name="ztna-server", cert_file=cert_file, key_file=key_file
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def with_metrics() -> list[str]:
    """Flags of a server that lets anybody in and shows its metrics."""
    return ["--client-auth", "optional", "--metrics-port", str(free_port())]


async def received(connection: Connection) -> bytes:
    async with asyncio.timeout(PATIENCE):
        return await connection.receive()
