"""Another version: its files take the place of those of programs that run, and a state directory comes back from it."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import httpx
import pytest

import intermediate_server
from intermediate_server.testing.applications import PAGE
from intermediate_server.testing.plugin import StartApplication
from intermediate_server.testing.programs import Program
from tests.integration.commands import environment, run
from tests.integration.site import free_port

DATABASES = ("identity.db", "addresses.db", "volume.db")


class Host:
    """A host with an installation of its own, and a state that commands and programs share."""

    def __init__(self, directory: Path, running: AsyncExitStack) -> None:
        self.directory, self.state = directory, directory / "state"
        self._running = running
        self._package = directory / "installed" / "intermediate_server"
        self._sockets = {"RUNTIME_DIRECTORY": str(directory / "run")}
        (directory / "run").mkdir()

    def install(self) -> None:
        """Put the files of the package there."""
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(intermediate_server.__file__).parent, self._package, ignore=ignored)

    def uninstall(self) -> None:
        """Take them away from beneath the programs."""
        shutil.rmtree(self._package)

    async def begin(self, *arguments: str, ready: str) -> Program:
        """Start a program of the installation."""
        env = environment(self.directory, {**self._sockets, "PYTHONPATH": str(self._package.parent)})
        program = await Program.start(*arguments, "--log-format", "json", env=env)
        await self._running.enter_async_context(program)
        await program.wait_log(ready)
        return program

    async def serve(self, admin: int = 0, port: int = 0) -> Program:
        """Start the relay."""
        flags = ("--bind", "127.0.0.1", "--port", str(port), "--metrics-port", str(admin))
        return await self.begin("serve", *flags, ready="Server listening on")

    async def ask(self, *arguments: str, code: int = 0) -> str:
        """Run a command, of an installation that is whole; what it prints, or complains of."""
        done = await asyncio.to_thread(run, self.directory, *arguments, env=self._sockets)
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    async def join(self, name: str, role: str) -> str:
        """The path of a new profile for the service ``web``."""
        token = (
            (await self.ask("token", "create", "web", "--role", role, "--name", name)).partition(" join ")[2].split()[0]
        )
        profile = str(self.directory / f"{name}.ztna")
        await self.ask("join", token, "--profile", profile)
        return profile

    def set_version(self, name: str, version: int) -> int:
        """Set the version of a database; returns the one before."""
        with closing(sqlite3.connect(self.state / name, isolation_level=None)) as db:
            (before,) = db.execute("PRAGMA user_version").fetchone()
            db.execute(f"PRAGMA user_version = {version}")
        return int(before)

    def content(self) -> list[bytes]:
        """The databases, byte for byte."""
        return [(self.state / name).read_bytes() for name in DATABASES]


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with AsyncExitStack() as running:
        made = Host(tmp_path, running)
        made.install()
        yield made


async def test_programs_go_on_while_their_files_are_replaced(host: Host, start_application: StartApplication) -> None:
    """In between there is no file at all, so nothing that is needed may be loaded for the first time then."""
    admin, local = free_port(), free_port()
    application = "{}:{}".format(*(await start_application("http")).address)
    relay = await host.serve(admin)
    office, laptop = await host.join("office", "connector"), await host.join("laptop", "agent")
    backend, forward = f"web=tcp://{application}", f"tcp:127.0.0.1:{local}=web"
    connector = await host.begin("connector", "--profile", office, "--service", backend, ready="Registered as")
    agent = await host.begin("agent", "--profile", laptop, "--forward", forward, ready="Registered as")

    host.uninstall()

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{admin}", trust_env=False) as http:
        for path in ("healthz", "readyz", "metrics", "status", "anonymous"):
            assert (await http.get(f"/{path}")).status_code == 200, path
        page = await http.get("/status", headers={"Accept": "text/html"})
        assert page.status_code == 200
        relay.signal(signal.SIGHUP)
        await relay.wait_log("Reloaded")
        late = await host.join("late", "agent")
        await host.ask("leave", "--profile", late)
        await host.ask("agent", "status")
        await host.ask("connector", "status")
        assert (await http.get(f"http://127.0.0.1:{local}/")).content == PAGE

    host.install()
    for program in (agent, connector, relay):
        assert await program.terminate() == 0, program.lines[-10:]
        assert not [line for line in program.lines if "exception" in line or "Traceback" in line["event"]]


async def test_a_state_directory_of_a_newer_version_loses_nothing(host: Host) -> None:
    relay = await host.serve()
    port = int(relay.lines[-1]["address"].rpartition(":")[2])
    await host.begin("agent", "--profile", await host.join("laptop", "agent"), ready="Registered as")
    await relay.terminate()
    versions = {name: host.set_version(name, 99) for name in DATABASES}
    before = host.content()

    older = await host.serve(port=port)
    await older.wait_log("Registration: Agent for service 'web'")
    for command in (("token", "create", "web"), ("pki", "issue", "agent", "new", "-s", "web"), ("pki", "list")):
        said = (await host.ask(*command, code=2)).splitlines()
        assert said[-1].endswith("identity.db is of a newer version; upgrade intermediate-server on this host")
        assert [line for line in said if line.startswith("error: ")] == said[-1:]
    assert await older.terminate() == 0
    for name in DATABASES:
        (line,) = [line for line in older.lines if name in str(line)]
        assert "newer" in str(line)
    assert host.content() == before

    for name, version in versions.items():
        host.set_version(name, version)
    newer = await host.serve(port=port)
    await newer.wait_log("Registration: Agent for service 'web'")
    assert "laptop" in await host.ask("pki", "list")
    await host.join("phone", "agent")
