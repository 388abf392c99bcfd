"""A server with a configuration file of its own, for tests of access: how to change it and what it says of itself."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509

from intermediate_server.admin.access import TOKEN
from intermediate_server.client import ClientEngine, Connection
from intermediate_server.pki import development, keys
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE, Server, StartServer
from tests.integration.packets import udp_packet

INNER = ("100.64.0.1", 5_000)
APPLICATION = ("10.0.0.5", 53)
PACKET = udp_packet(INNER, APPLICATION, b"x")

ALL_BY_CERTIFICATE = """
[[rules]]
name = "by certificate"
peers = "certified"
services = "certificate"
"""


def allow(name: str, **keys_and_values: object) -> str:
    """One rule as TOML."""
    lines = [f"{key.replace('_', '-')} = {json.dumps(value)}" for key, value in keys_and_values.items()]
    return "\n".join(["[[rules]]", f'name = "{name}"', *lines, ""])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Site:
    """A configuration file, a server that uses it, and its admin address."""

    def __init__(self, directory: Path, start: StartServer, engine: ClientEngine) -> None:
        self.config = directory / "config.toml"
        self.state = directory / "state"
        self.audit = directory / "audit.jsonl"
        self.port = free_port()
        self._start = start
        self._engine = engine
        self._ended = (0, 0)
        self.server: Server

    def write(self, text: str) -> None:
        """Replace the configuration file by a rename, as careful programs do."""
        made = self.config.with_suffix(".new")
        made.write_text(text)
        made.rename(self.config)

    async def start(self, text: str, *flags: str) -> Server:
        self.write(text)
        arguments = ["--config", str(self.config), "--metrics-port", str(self.port), "--audit-log", str(self.audit)]
        self.server = await self._start(*arguments, *flags, state_dir=self.state)
        return self.server

    async def restart(self) -> Server:
        """Another server with the same files; audit lines of the one before are gone."""
        self.audit.unlink()
        self._ended = (0, 0)
        arguments = ["--config", str(self.config), "--metrics-port", str(self.port), "--audit-log", str(self.audit)]
        return await self._start(*arguments, state_dir=self.state)

    async def get(self, path: str, *, accept: str = "*/*") -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}") as http:
            return await http.get(path, headers={"Accept": accept})

    async def reload(self) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE) as http:
            return await http.post("/reload", headers=self.proof)

    async def reload_ends(self) -> tuple[int, int]:
        """Reload; how many registrations and connections reloads have ended since this was asked last.

        Counted by metrics and not by the answer: the server watches its files, and may have reloaded by itself.
        """
        assert (await self.reload()).status_code == 200
        registrations = connections = 0
        for line in (await self.get("/metrics")).text.splitlines():
            if line.startswith("ztna_registrations_revoked_total{"):
                registrations += round(float(line.split()[-1]))
            elif line.startswith("ztna_connections_disconnected_total{") and 'cause="access"' not in line:
                connections += round(float(line.split()[-1]))
        before, self._ended = self._ended, (registrations, connections)
        return registrations - before[0], connections - before[1]

    @property
    def proof(self) -> dict[str, str]:
        """What shows that a request comes from somebody who may read the state directory."""
        return {"Authorization": f"Bearer {(self.state / TOKEN).read_text().strip()}"}

    async def metric(self, name: str) -> float:
        for line in (await self.get("/metrics")).text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        raise AssertionError(f"no metric {name}")

    async def wait_metric(self, name: str, value: float) -> None:
        await until(lambda: self._is(name, value), f"{name} {value}")

    async def _is(self, name: str, value: float) -> bool:
        return await self.metric(name) == value

    async def dial(self, *names: str, cert: tuple[Path, Path] | None = None) -> Connection:
        """Connect with a new certificate for these names, with ``cert``, or with none."""
        cert_file, key_file = self.server.certificate(list(names)) if names else cert or (None, None)
        return await self._engine.connect(
            self.server.address,
            ca_file=self.server.ca_file,
            server_name="ztna-server",
            cert_file=cert_file,
            key_file=key_file,
        )

    async def join(self, role: Role, service: str, *names: str, cert: tuple[Path, Path] | None = None) -> Connection:
        connection = await self.dial(*names, cert=cert)
        await connection.register(role, service)
        return connection

    def decisions(self, decision: str) -> list[dict[str, Any]]:
        # What follows the last line end is being written.
        lines = [json.loads(line) for line in self.audit.read_text().split("\n")[:-1]]
        return [line for line in lines if line["decision"] == decision]

    async def wait_decision(self, decision: str, **fields: object) -> dict[str, Any]:
        """The first audit line of this decision with these fields."""

        async def found() -> list[dict[str, Any]]:
            return [line for line in self.decisions(decision) if all(line[key] == fields[key] for key in fields)]

        await until(found, f"audit line {decision} {fields}")
        return (await found())[0]


async def until(condition: Callable[[], Awaitable[object]], what: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - another process decides when
            await asyncio.sleep(0.02)


async def closed(connection: Connection) -> tuple[int, str]:
    async with asyncio.timeout(PATIENCE):
        end = await connection.wait_closed()
    assert end.cause == "application", end
    return end.code, end.reason


async def received(connection: Connection) -> bytes:
    async with asyncio.timeout(PATIENCE):
        return await connection.receive()


def issue(site: Site, name: str, *, end: timedelta = timedelta(hours=1)) -> tuple[Path, Path]:
    """A client certificate of the server's own CA with this DNS name, whatever it is."""
    authority, authority_key = development.load_authority(site.state, now=keys.utc_now())
    key = keys.new_key()
    now = datetime.now(UTC)
    certificate = keys.sign(
        subject=keys.common_name("made"),
        public_key=key.public_key(),
        authority=authority,
        authority_key=authority_key,
        names=[x509.DNSName(name)],
        usage=keys.CLIENT_AUTH,
        not_before=now - timedelta(hours=1),
        not_after=now + end,
    )
    paths = site.state / "made.pem", site.state / "made.key"
    paths[0].write_bytes(keys.certificate_pem(certificate))
    paths[1].touch(mode=0o600)
    paths[1].write_bytes(keys.key_pem(key))
    return paths
