"""Two services of one connector: an agent reaches the one that its certificate grants, whatever its packets say."""

from __future__ import annotations

import asyncio

import pytest

from intermediate_server.client import Connection
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE, Server, SharedServers
from tests.integration.tunnels import TunnelEngine, application, connected, tcp_backend, tcp_forward


async def certified(tunnels: TunnelEngine, server: Server, role: Role, *services: str) -> Connection:
    certificate = server.certificate([f"{role.value}.{service}.ztna" for service in services])
    return await connected(tunnels, server, role, *services, certificate=certificate)


async def says(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes) -> None:
    writer.write(text)
    await writer.drain()


async def fetch(port: tuple[str, int]) -> bytes:
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(*port)
        try:
            return await reader.read()
        finally:
            writer.close()


async def test_a_grant_for_one_service_does_not_reach_another(
    share_server: SharedServers, tunnels: TunnelEngine
) -> None:
    server = share_server()
    async with (
        application(lambda r, w: says(r, w, b"web")) as web,
        application(lambda r, w: says(r, w, b"db")) as db,
    ):
        backends = await tunnels.open_backends([tcp_backend(web.address), tcp_backend(db.address, service="db")])
        port_of_db = db.address[1]
        forwards, ports = await tunnels.open_forwards(
            [
                tcp_forward(),
                # Wrapped for the service that is granted, addressed to the other.
                tcp_forward(to="db"),
                tcp_forward(to="db", port=port_of_db),
            ]
        )
        await tunnels.attach(backends, await certified(tunnels, server, Role.CONNECTOR, "web", "db"))
        await tunnels.attach(forwards, await certified(tunnels, server, Role.AGENT, "web"), ["web"])
        assert await fetch(ports[0]) == b"web"
        for port in ports[1:]:
            with pytest.raises(ConnectionResetError):
                await fetch(port)
        assert await fetch(ports[0]) == b"web"
        assert db.connections == 0
        # The relay stopped them: the connector saw only what it has answered.
        assert tunnels.counters(backends)["drop_no_service"] == 0


async def test_each_of_two_granted_services_is_reached(share_server: SharedServers, tunnels: TunnelEngine) -> None:
    server = share_server()
    async with (
        application(lambda r, w: says(r, w, b"web")) as web,
        application(lambda r, w: says(r, w, b"db")) as db,
    ):
        backends = await tunnels.open_backends([tcp_backend(web.address), tcp_backend(db.address, service="db")])
        forwards, ports = await tunnels.open_forwards([tcp_forward(service="db"), tcp_forward()])
        await tunnels.attach(backends, await certified(tunnels, server, Role.CONNECTOR, "web", "db"))
        await tunnels.attach(forwards, await certified(tunnels, server, Role.AGENT, "web", "db"), ["web", "db"])
        assert [await fetch(port) for port in ports] == [b"db", b"web"]
