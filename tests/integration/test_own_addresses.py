"""Own inner addresses over restarts of a real server, with a pool so small that identities want the same ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import httpx

from intermediate_server.client import ClientEngine, Connection
from intermediate_server.server.reserved_addresses import FILE
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE, Server, StartServer
from tests.integration.packets import read_udp, udp_packet
from tests.integration.site import free_port

FLAGS = ("--inner-pool-v4", "10.99.0.0/29", "--client-auth", "optional")
OWN, SHARED = range(1, 4), range(4, 7)
"""The hosts of the pool that identities have for good, and those that are shared."""


def admin() -> list[str]:
    return ["--metrics-port", str(free_port())]


Certificate = tuple[Path, Path]


async def seen(engine: ClientEngine, server: Server, certificates: Sequence[Certificate | None]) -> list[int]:
    """The hosts of the pool that an application sees agents with these certificates as, one at a time."""
    connector = await connect(engine, server, None)
    await connector.register(Role.CONNECTOR, "web")
    hosts = []
    for certificate in certificates:
        agent = await connect(engine, server, certificate)
        await agent.register(Role.AGENT, "web")
        agent.send(udp_packet(("172.16.0.1", 5000), ("10.0.0.53", 53), b"who am I"))
        async with asyncio.timeout(PATIENCE):
            source = read_udp(await connector.receive()).source[0]
        hosts.append(int(ip_address(source)) - int(ip_address("10.99.0.0")))
        await agent.close()
    await connector.close()
    return hosts


async def connect(engine: ClientEngine, server: Server, certificate: Certificate | None) -> Connection:
    cert_file, key_file = certificate or (None, None)
    return await engine.connect(
        server.address, ca_file=server.ca_file, cert_file=cert_file, key_file=key_file, server_name="ztna-server"
    )


async def warnings(server: Server) -> list[str]:
    line = await server.wait_log("Admin listening on")
    async with httpx.AsyncClient() as http:
        found: list[str] = (await http.get(f"http://{line['host']}:{line['port']}/readyz")).json()["warnings"]
    return [text for text in found if FILE in text]


async def test_an_address_stays_its_first_owners(start_server: StartServer, engine: ClientEngine) -> None:
    server = await start_server(*FLAGS, *admin())
    people = [server.certificate(["agent.web.ztna"]) for _ in range(5)]
    others = [server.certificate(["agent.web.ztna"]), None]
    first = await seen(engine, server, people)
    owners = [host for host in first if host in OWN]
    assert sorted(owners) == list(OWN), "three have one, the others came too late"
    assert await warnings(server) == []

    # Another order, and one more; the server was killed, not stopped.
    server.process.kill()
    await server.process.wait()
    again = await start_server(*FLAGS, *admin(), state_dir=server.state_dir)
    hosts = await seen(engine, again, [*others, *reversed(people)])
    assert all(host in SHARED for host in hosts[:2])
    kept = list(reversed(hosts[2:]))
    assert [host for host in kept if host in OWN] == owners
    assert [host in OWN for host in kept] == [host in OWN for host in first]
    await again.terminate()

    # Damaged: nobody is given what may be another's, also where nothing is left of the file. It relays.
    path = server.state_dir / FILE
    path.write_bytes(path.read_bytes()[:4096] + b"\xee" * 4096)
    damaged = await start_server(*FLAGS, *admin(), state_dir=server.state_dir)
    assert all(host in SHARED for host in await seen(engine, damaged, [*others, people[0]]))
    (told,) = await warnings(damaged)
    assert "damaged" in told
    assert len([line for line in damaged.lines if "known in part" in line["event"]]) == 1
