"""The programs of ``examples/``, run as a reader would run them. Those of the pages run with the pages."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from intermediate_server.testing import Connector
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE, Server, StartServer

ROOT = Path(__file__).resolve().parents[2]
StartConnector = Callable[..., Awaitable[Connector]]


@pytest.fixture
async def server(start_server: StartServer, tmp_path: Path) -> Server:
    """A relay with its state where the documents have it, and the certificates they make."""
    server = await start_server(state_dir=tmp_path / "state")
    server.issue(Role.CONNECTOR, "office", ["web"])
    server.issue(Role.AGENT, "laptop", ["web"])
    return server


async def run(directory: Path, *words: str) -> str:
    """What a Python program prints, which must end well; its profiles are in ``directory``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *words,
        cwd=directory,
        env={**os.environ, "STATE_DIRECTORY": str(directory)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(PATIENCE):
        printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode()
    return printed.decode()


async def test_the_agent(server: Server, tmp_path: Path, start_connector: StartConnector) -> None:
    await start_connector(server, {"web": "tcp://127.0.0.1:9"})
    program = ROOT / "examples" / "agent.py"
    certificate = ("state/issued/laptop.pem", "state/issued/laptop.key")
    address = f"127.0.0.1:{server.address[1]}"
    printed = await run(tmp_path, str(program), address, "web", "state/ca.pem", *certificate)
    assert re.fullmatch(r"seen at 127\.0\.0\.1:\d+\nanswered in [\d.]+ ms\n", printed)
    assert len(program.read_text().splitlines()) <= 21, "it says that it has twenty lines"
