"""Agent and connector as programs in the network of a test, and what people do through them."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from intermediate_server.client.service_address import service_addresses
from intermediate_server.testing import Agent, Connector, Program
from intermediate_server.testing.programs import PATIENCE
from tests.e2e.field import Field
from tests.e2e.netns import Host

PORT = 8080
MEGABYTE = 1_000_000


class Site:
    """A web server with one file, on a host, behind a connector."""

    def __init__(self, field: Field, directory: Path, host: Host) -> None:
        self.field = field
        self.host = host
        self.connectors: list[Connector] = []
        self._directory = directory
        self.checksum = ""

    async def serve_file(self, size: int) -> None:
        """Serve a file of ``size`` bytes, each of them at its own place, on port 8080 of every address."""
        shared = self._directory / "shared"
        shared.mkdir()
        content = random.Random(size).randbytes(size)
        (shared / "file").write_bytes(content)
        self.checksum = hashlib.sha256(content).hexdigest()
        await self.field.running.enter_async_context(
            await Program.start(
                str(PORT), "--bind", "::", "--directory", str(shared), module="http.server", within=self.host.within
            )
        )
        async with asyncio.timeout(PATIENCE):
            while not _listens(self.host, PORT):  # noqa: ASYNC110  another process decides when
                await asyncio.sleep(0.05)

    async def connect(self, *flags: str, host: Host | None = None, name: str = "connector") -> Connector:
        """A connector for the service ``web``: to the web server, or with ``--tun`` to the host itself."""
        url = None if "--tun" in flags else f"tcp://127.0.0.1:{PORT}"
        within = (host or self.host).within
        starting = Connector.begin(self.field.relay, {"web": url}, *flags, name=name, within=within)
        connector = await self.field.running.enter_async_context(await starting)
        if url is None:
            await connector.wait_log("carries packets of up to")
        self.connectors.append(connector)
        return connector


async def tun_agent(field: Field, host: Host, *flags: str, name: str = "agent") -> Agent:
    """An agent with a TUN interface on a host."""
    starting = Agent.begin(field.relay, (), "--tun", *flags, services=["web"], name=name, within=host.within)
    agent = await field.running.enter_async_context(await starting)
    await agent.wait_log("carries packets of up to")
    return agent


async def reach(field: Field, how: str) -> tuple[Agent, str]:
    """An agent on its usual host, with a TUN interface or a local port (``tun`` or ``forward``), and where it leads."""
    if how == "tun":
        return await tun_agent(field, field.agent), f"{web()}:{PORT}"
    starting = Agent.begin(field.relay, [("tcp", "web")], within=field.agent.within)
    agent = await field.running.enter_async_context(await starting)
    return agent, agent.addresses[0]


def web(version: int = 4) -> str:
    """The address of the service."""
    return str(service_addresses("web")[0 if version == 4 else 1])


@asynccontextmanager
async def curl(
    host: Host, target: Path, *flags: str, address: str | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A download that runs while the block does, from the service address unless ``address`` names another."""
    url = f"http://{address or f'{web()}:{PORT}'}/file"
    words = ("curl", "-sS", "--fail", "--max-time", "100", "-o", str(target), *flags, url)
    process = await asyncio.create_subprocess_exec(*host.within, *words, stderr=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def download(host: Host, target: Path, checksum: str, *flags: str, address: str | None = None) -> None:
    """Fetch the file and compare it with what it must be."""
    async with curl(host, target, *flags, address=address) as process:
        _, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    check(target, checksum)


def check(target: Path, checksum: str) -> None:
    """Assert that a download is whole."""
    with target.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == checksum, f"{target.stat().st_size} bytes"


async def ping(host: Host, address: str, *flags: str, patience: float = PATIENCE) -> str:
    """What ping prints once an echo comes back: the first may be lost while the MTU is set."""
    async with asyncio.timeout(patience):
        while True:
            words = ("ping", "-c", "3", "-i", "0.2", "-W", "2", *flags, address)
            process = await asyncio.create_subprocess_exec(
                *host.within, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            said, _ = await process.communicate()
            if process.returncode == 0:
                return said.decode()


async def grown(target: Path, size: int) -> None:
    """Wait until a file has this size."""
    async with asyncio.timeout(PATIENCE):
        while _size(target) < size:  # noqa: ASYNC110  another process decides when
            await asyncio.sleep(0.02)


def _size(target: Path) -> int:
    return target.stat().st_size if target.exists() else 0


def _listens(host: Host, port: int) -> bool:
    return f":{port} " in host.run("ss", "-Hltn")
