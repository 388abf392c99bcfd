"""Each policy of ``examples/policies`` with the real server, certificates and packets."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.client import ClientEngine, Connection
from intermediate_server.errors import RegistrationError
from intermediate_server.types import Role
from tests.integration.client_ca import Ca
from tests.integration.conftest import PATIENCE, Server, StartServer
from tests.integration.packets import read_udp, udp_packet

POLICIES = Path(__file__).parents[2] / "examples" / "policies"
INNER, APPLICATION = ("100.64.0.1", 5_000), ("10.0.0.5", 53)


class Network:
    """A server with a policy, a CA for its clients, and connections to it."""

    def __init__(self, server: Server, engine: ClientEngine, ca: Ca, directory: Path) -> None:
        self._server, self._engine, self._ca, self._directory = server, engine, ca, directory

    async def dial(self, *names: str, common_name: str = "peer", uris: list[str] | None = None) -> Connection:
        pem, key = self._ca.issue(*names, common_name=common_name, uris=uris or [])
        certificate_file, key_file = self._directory / "peer.pem", self._directory / "peer.key"
        certificate_file.write_bytes(pem)
        key_file.touch(mode=0o600)
        key_file.write_bytes(key)
        return await self._engine.connect(
            self._server.address,
            ca_file=self._server.ca_file,
            server_name="ztna-server",
            cert_file=certificate_file,
            key_file=key_file,
        )


async def network(
    start_server: StartServer, engine: ClientEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> Network:
    ca = Ca("clients")
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(ca.certificate.public_bytes(Encoding.PEM))
    monkeypatch.setenv("PYTHONPATH", str(POLICIES), prepend=":")
    server = await start_server("--ca-cert", str(trusted), "--policy", policy)
    return Network(server, engine, ca, tmp_path)


async def passes(agent: Connection, connector: Connection, mark: bytes) -> None:
    """A packet of the agent reaches this connector."""
    agent.send(udp_packet(INNER, APPLICATION, mark))
    async with asyncio.timeout(PATIENCE):
        assert read_udp(await connector.receive()).payload == mark


async def test_spiffe(
    start_server: StartServer, engine: ClientEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = await network(start_server, engine, tmp_path, monkeypatch, "spiffe:SpiffePolicy")
    connector = await net.dial(uris=["spiffe://example.org/connector/web"])
    await connector.register(Role.CONNECTOR, "web")
    agent = await net.dial(uris=["spiffe://example.org/agent/web"])
    await agent.register(Role.AGENT, "web")
    await passes(agent, connector, b"spiffe")
    with pytest.raises(RegistrationError):
        await agent.register(Role.CONNECTOR, "web")
    for uris in (["spiffe://example.com/agent/web"], ["spiffe://example.org/agent/web", "spiffe://example.org/x"]):
        with pytest.raises(RegistrationError):
            await (await net.dial(uris=uris)).register(Role.AGENT, "web")


async def test_on_call(
    start_server: StartServer, engine: ClientEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shifts = tmp_path / "shifts.json"
    monkeypatch.setenv("ON_CALL_FILE", str(shifts))
    now = datetime.now(UTC)

    def shift(hours: float) -> dict[str, object]:
        return {"services": ["db"], "until": (now + timedelta(hours=hours)).isoformat()}

    shifts.write_text(json.dumps({"ann": shift(1), "bob": shift(-1)}))
    net = await network(start_server, engine, tmp_path, monkeypatch, "on_call:OnCallPolicy")
    connector = await net.dial("connector.db.ztna")
    await connector.register(Role.CONNECTOR, "db")
    ann = await net.dial(common_name="ann")
    await ann.register(Role.AGENT, "db")
    await passes(ann, connector, b"on call")
    for name, service in (("ann", "web"), ("bob", "db"), ("eve", "db")):
        with pytest.raises(RegistrationError):
            await (await net.dial(common_name=name)).register(Role.AGENT, service)


async def test_regions(
    start_server: StartServer, engine: ClientEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = await network(start_server, engine, tmp_path, monkeypatch, "regions:RegionPolicy")
    home = await net.dial("connector.web.ztna", "eu-west.region.example")
    away = await net.dial("connector.web.ztna", "us-east.region.example")
    agents = [await net.dial("agent.web.ztna") for _ in range(4)]
    for connector in (home, away):
        await connector.register(Role.CONNECTOR, "web")
    for number, agent in enumerate(agents):
        await agent.register(Role.AGENT, "web")
        await passes(agent, home, b"home %d" % number)
    await home.close()
    for number, agent in enumerate(agents):
        async with asyncio.timeout(PATIENCE):
            arrived = asyncio.create_task(away.receive())
            while not arrived.done():
                agent.send(udp_packet(INNER, APPLICATION, b"away %d" % number))
                await asyncio.wait({arrived}, timeout=0.05)
        assert read_udp(arrived.result()).payload.startswith(b"away")
