"""The real server as a process of its own, on an ephemeral port."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from intermediate_server.client import ClientEngine
from intermediate_server.pki.authority import Authority
from intermediate_server.types import Role

PATIENCE = 30.0
"""Seconds to wait for what must come; only a failing test waits that long."""


@dataclass
class Server:
    """A running ``intermediate-server serve``."""

    process: asyncio.subprocess.Process
    state_dir: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    grown: asyncio.Condition = field(default_factory=asyncio.Condition)
    reader: asyncio.Task[None] | None = None
    address: tuple[str, int] = ("", 0)
    issued: int = 0

    @property
    def ca_file(self) -> Path:
        return self.state_dir / "ca.pem"

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            try:
                line = json.loads(raw)
            except ValueError:
                line = {"event": raw.decode(errors="replace").rstrip()}
            async with self.grown:
                self.lines.append(line)
                self.grown.notify_all()
        async with self.grown:
            self.lines.append({"event": "(the process has ended)"})
            self.grown.notify_all()

    async def wait_log(self, text: str, *, count: int = 1, **fields: object) -> dict[str, Any]:
        """The ``count``-th log line that contains ``text`` and has ``fields``."""

        def found() -> list[dict[str, Any]]:
            return [
                line
                for line in self.lines
                if text in str(line.get("event", "")) and all(line.get(k) == v for k, v in fields.items())
            ]

        async with self.grown:
            try:
                async with asyncio.timeout(PATIENCE):
                    await self.grown.wait_for(lambda: len(found()) >= count)
            except TimeoutError:
                raise AssertionError(f"{text!r} not logged {count} times; the log: {self.lines[-30:]}") from None
        return found()[count - 1]

    def issue(self, names: list[str]) -> tuple[Path, Path]:
        """A client certificate with these ``.ztna`` names."""
        self.issued += 1
        role = Role(names[0].split(".")[0])
        services = [name.removesuffix(".ztna").split(".", 1)[1] for name in names]
        authority = Authority(self.state_dir)
        issued = authority.issue(role, f"peer-{self.issued}", services=services)
        return authority.certificate_file(issued.name), authority.key_path(issued.name)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def terminate(self) -> int:
        """SIGTERM and wait; the exit status."""
        if self.process.returncode is None:
            self.process.terminate()
        async with asyncio.timeout(PATIENCE):
            code = await self.process.wait()
            if self.reader is not None:
                await self.reader
        return code


StartServer = Callable[..., Awaitable[Server]]


@pytest.fixture
async def start_server(tmp_path: Path) -> AsyncIterator[StartServer]:
    """Starts servers with the given flags on 127.0.0.1, each with a state directory of its own."""
    started: list[Server] = []

    async def start(*flags: str, bind: str = "127.0.0.1", state_dir: Path | None = None) -> Server:
        state_dir = state_dir or tmp_path / f"state-{len(started)}"
        arguments = ["--bind", bind, "--port", "0", "--log-format", "json", "--state-dir", str(state_dir), *flags]
        if "--metrics-port" not in flags:
            arguments += ["--metrics-port", "0"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "intermediate_server",
            "serve",
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        server = Server(process, state_dir)
        started.append(server)
        server.reader = asyncio.create_task(server.read())
        line = await server.wait_log("Server listening on")
        host, _, port = str(line["address"]).rpartition(":")
        server.address = (host.strip("[]"), int(port))
        return server

    yield start
    for server in started:
        if server.process.returncode is None:
            server.process.kill()
        await server.process.wait()
        if server.reader is not None:
            await server.reader


@pytest.fixture
async def engine() -> AsyncIterator[ClientEngine]:
    async with ClientEngine() as engine:
        yield engine
