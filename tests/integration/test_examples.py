"""The programs of the documents and of ``examples/``, run as a reader would run them."""

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


def program_of(document: str) -> str:
    (program,) = re.findall(r"```python[^\n]*\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    return str(program)


async def test_the_program_of_the_readme(server: Server, tmp_path: Path) -> None:
    token = await server.token(Role.AGENT, "laptop", ["web"])
    await run(tmp_path, "-m", "intermediate_server", "join", token)
    assert re.fullmatch(r"seen at 127\.0\.0\.1:\d+\n", await run(tmp_path, "-c", program_of("README.md")))


async def test_the_program_of_the_page_on_the_client(server: Server, tmp_path: Path) -> None:
    program = program_of("docs/client.md")
    assert "127.0.0.1:4433" in program
    program = program.replace("127.0.0.1:4433", server.server)
    assert re.fullmatch(r"from 100\.\d+\.\d+\.\d+ came b'question'\n", await run(tmp_path, "-c", program))


async def test_the_agent(server: Server, tmp_path: Path, start_connector: StartConnector) -> None:
    await start_connector(server, {"web": "tcp://127.0.0.1:9"})
    program = ROOT / "examples" / "agent.py"
    certificate = ("state/issued/laptop.pem", "state/issued/laptop.key")
    address = f"127.0.0.1:{server.address[1]}"
    printed = await run(tmp_path, str(program), address, "web", "state/ca.pem", *certificate)
    assert re.fullmatch(r"seen at 127\.0\.0\.1:\d+\nanswered in [\d.]+ ms\n", printed)
    assert len(program.read_text().splitlines()) <= 21, "it says that it has twenty lines"
