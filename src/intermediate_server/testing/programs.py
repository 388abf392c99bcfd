"""Programs of this package as processes whose log is read as it is written."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

from intermediate_server.client import status
from intermediate_server.errors import ConnectError, IntermediateServerError
from intermediate_server.pki import Authority
from intermediate_server.types import Role

PATIENCE = 30.0
"""Seconds to wait for an expected event; only a defect takes that long."""

ENDED = "(the process has ended)"
_LAST_LINES = 30


class ProgramError(IntermediateServerError):
    """A program ended, or an expected event did not come in time; the text has the end of its log."""


class Program:
    """A running ``python -m MODULE ARGUMENTS``. Use as ``async with``, or end it with :meth:`terminate`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        """Every line of its log so far; a line that is no JSON has the one key ``event``."""
        self._grown = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls,
        *arguments: str,
        module: str = "intermediate_server",
        env: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> Self:
        """Start it; its output goes to :attr:`lines`.

        ``within`` begins its command line, such as ``ip netns exec NAME``; it must end in an exec, so that
        signals reach the program.
        """
        process = await asyncio.create_subprocess_exec(
            *within,
            sys.executable,
            "-m",
            module,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=env,
            # Ctrl-C is for the parent, which ends it in its turn.
            start_new_session=True,
        )
        return cls(process)

    @asynccontextmanager
    async def beginning(self) -> AsyncIterator[Self]:
        """Ends it when the block fails, since before its start it has no other owner."""
        try:
            yield self
        except BaseException:
            await self.terminate()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.terminate()

    async def wait_log(self, text: str, *, count: int = 1, **fields: object) -> dict[str, Any]:
        """The ``count``-th line that contains ``text`` and has ``fields``. Raises ``ProgramError``."""

        def found() -> list[dict[str, Any]]:
            return [
                line
                for line in self.lines
                if text in str(line.get("event", "")) and all(line.get(key) == value for key, value in fields.items())
            ]

        def over() -> bool:
            return len(found()) >= count or self.ended

        async with self._grown:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._grown.wait_for(over)
        if len(found()) < count:
            raise self._error(f"{text!r} was not logged {count} times")
        return found()[count - 1]

    def _error(self, text: str) -> ProgramError:
        tail = "\n".join(str(line) for line in self.lines[-_LAST_LINES:])
        return ProgramError(f"{text}; the end of the log:\n{tail}")

    @property
    def ended(self) -> bool:
        """Whether it has ended and its output has been read."""
        return bool(self.lines) and self.lines[-1].get("event") == ENDED

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        # Not by the process object: it would reap one that has just ended, and its exit status would be lost.
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    async def terminate(self) -> int:
        """End it with SIGTERM, or SIGKILL when it does not take that; returns its exit status."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(PATIENCE):
                await self.process.wait()
        except TimeoutError:
            await self.kill()
        await self._reader
        self.clean()
        return self.process.returncode or 0

    async def kill(self) -> None:
        """End it with SIGKILL."""
        self.signal(signal.SIGKILL)
        await self.process.wait()
        await self._reader

    def clean(self) -> None:
        """Remove its temporary files."""

    async def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101  we asked for it
        async for raw in self.process.stdout:
            try:
                line = json.loads(raw)
            except ValueError:
                line = None
            await self._grow(line if isinstance(line, dict) else {"event": raw.decode(errors="replace").rstrip()})
        await self._grow({"event": ENDED})

    async def _grow(self, line: dict[str, Any]) -> None:
        async with self._grown:
            self.lines.append(line)
            self._grown.notify_all()


class Relay(Program):
    """A running relay with a CA of its own."""

    state_dir: Path
    address: tuple[str, int]
    """Its listening address, and the one for agents and connectors, which differs for a wildcard."""

    @classmethod
    async def begin(
        cls, state_dir: Path, *flags: str, bind: str = "127.0.0.1", port: int = 0, within: Sequence[str] = ()
    ) -> Self:
        """Start a relay with its state in ``state_dir`` and wait until it listens. Raises ``ProgramError``."""
        arguments = ["serve", "--bind", bind, "--port", str(port), "--log-format", "json"]
        arguments += ["--state-dir", str(state_dir), *flags]
        if "--metrics-port" not in flags:
            arguments += ["--metrics-port", "0"]
        async with (await cls.start(*arguments, within=within)).beginning() as relay:
            relay.state_dir = state_dir
            line = await relay.wait_log("Server listening on")
            host, _, bound = str(line["address"]).rpartition(":")
            relay.address = (host.strip("[]"), int(bound))
        return relay

    @property
    def ca_file(self) -> Path:
        """The CA that its certificate, and those of its clients, chain to."""
        return self.state_dir / "ca.pem"

    def issue(self, role: Role, name: str, services: Sequence[str]) -> tuple[Path, Path]:
        """A certificate for a peer, and its private key."""
        authority = Authority(self.state_dir)
        issued = authority.issue(role, name, services=services)
        return authority.certificate_file(issued.name), authority.key_path(issued.name)

    @property
    def server(self) -> str:
        """Its address as ``host:port``."""
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def token(self, role: Role, name: str, services: Sequence[str]) -> str:
        """A join token for a peer, who takes the place of an older one of that name. Raises ``ProgramError``."""
        arguments = ["--role", role.value, "--name", name, "--replace"]
        arguments += ["--address", self.server, "--state-dir", str(self.state_dir)]
        async with await Program.start("token", "create", *services, *arguments) as command:
            line = await command.wait_log("intermediate-server join ")
        return str(line["event"]).partition(" join ")[2].split()[0]


class Client(Program):
    """A running agent or connector."""

    socket: Path
    """Its status socket."""

    @classmethod
    async def _start(
        cls,
        role: Role,
        relay: Relay,
        name: str,
        services: Sequence[str],
        flags: Sequence[str],
        *,
        profile: Path | None,
        within: Sequence[str],
    ) -> Self:
        if profile is None:
            certificate, key = relay.issue(role, name, services)
            arguments = ["--server", relay.server, "--server-name", "ztna-server", "--ca-cert", str(relay.ca_file)]
            arguments += ["--cert", str(certificate), "--key", str(key)]
        else:
            arguments = ["--join", await relay.token(role, name, services), "--profile", str(profile)]
        # Paths of Unix sockets are short, those of tests are long.
        directory = Path(tempfile.mkdtemp(prefix="ztna-"))
        arguments += ["--log-format", "json", "--status-socket", str(directory / "s"), *flags]
        client = await cls.start(role.value, *arguments, within=within)
        client.socket = directory / "s"
        return client

    async def wait_registered(self, services: int = 1) -> None:
        """Wait until it has registered for that many services."""
        await self.wait_log("Registered as", count=services)

    async def status(self) -> dict[str, Any]:
        """Its status. Raises ``ConnectError``."""
        return await status.ask(self.socket)

    def clean(self) -> None:
        """Remove the directory of the status socket."""
        shutil.rmtree(self.socket.parent, ignore_errors=True)


class Connector(Client):
    """A running connector."""

    @classmethod
    async def begin(
        cls,
        relay: Relay,
        backends: Mapping[str, str | None],
        *flags: str,
        name: str = "connector",
        profile: Path | None = None,
        within: Sequence[str] = (),
    ) -> Self:
        """Serve ``backends``, URLs such as ``tcp://127.0.0.1:8080`` by service. Raises ``ProgramError``.

        With ``--tun`` among the flags the services have no URL. It joins by a token where it gets a place for its
        ``profile``, and has files of the CA otherwise.
        """
        named = (service if url is None else f"{service}={url}" for service, url in backends.items())
        wanted = [part for text in named for part in ("--service", text)]
        starting = cls._start(
            Role.CONNECTOR, relay, name, list(backends), [*wanted, *flags], profile=profile, within=within
        )
        async with (await starting).beginning() as connector:
            await connector.wait_registered(len(backends))
        return connector


class Agent(Client):
    """A running agent."""

    addresses: list[str]
    """Its local ports as ``host:port``, in the order of the forwards."""

    @classmethod
    async def begin(
        cls,
        relay: Relay,
        forwards: Sequence[tuple[str, str]],
        *flags: str,
        services: Sequence[str] = (),
        name: str = "agent",
        profile: Path | None = None,
        within: Sequence[str] = (),
    ) -> Self:
        """Open a free local port for each pair of ``tcp`` or ``udp`` and a service. Raises ``ProgramError``.

        ``services`` are registered beside them, as with ``--tun`` among the flags, which has no forwards. It joins by a
        token where it gets a place for its ``profile``, and has files of the CA otherwise.
        """
        wanted = [part for kind, service in forwards for part in ("--forward", f"{kind}:127.0.0.1:0={service}")]
        wanted += [part for service in services for part in ("--service", service)]
        services = list(dict.fromkeys([*(service for _, service in forwards), *services]))
        starting = cls._start(Role.AGENT, relay, name, services, [*wanted, *flags], profile=profile, within=within)
        async with (await starting).beginning() as agent:
            await agent.wait_registered(len(services))
            try:
                agent.addresses = list((await agent.status()).get("local", ()))
            except ConnectError as error:
                # It may have registered and ended, and its log says why.
                await agent.terminate()
                raise agent._error(str(error)) from error
        return agent


class Application(Program):
    """An application to reach: ``http``, ``tcp-echo`` or ``udp-echo``."""

    address: tuple[str, int]

    @classmethod
    async def begin(cls, kind: str, *, bind: str = "127.0.0.1", within: Sequence[str] = ()) -> Self:
        """Start it on a free port. Raises ``ProgramError``."""
        starting = cls.start(kind, bind, module="intermediate_server.testing.applications", within=within)
        async with (await starting).beginning() as application:
            line = await application.wait_log("Listening")
            application.address = (line["host"], line["port"])
        return application
