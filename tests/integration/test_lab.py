"""The lab, and the pieces it is made of, as somebody uses them who installed the package."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console
from rich.live import Live

from intermediate_server.cli import lab as labs
from intermediate_server.testing import Agent, Application, Connector, Lab, Program, ProgramError, Relay
from intermediate_server.testing.applications import PAGE
from intermediate_server.testing.plugin import StartAgent, StartApplication, StartConnector, StartRelay
from intermediate_server.testing.programs import PATIENCE


async def run(*arguments: str) -> tuple[int, list[str]]:
    program = await Program.start("lab", *arguments)
    async with asyncio.timeout(2 * PATIENCE):
        status = await program.process.wait()
    await program.terminate()
    return status, [str(line["event"]) for line in program.lines[:-1]]


async def test_the_lab_comes_up_and_is_tried(tmp_path: Path) -> None:
    status, lines = await run("--once", "--json", "--dir", str(tmp_path))
    steps = json.loads("\n".join(lines))
    assert status == 0
    assert [step["error"] for step in steps] == [None] * 7
    assert steps[-1]["step"] == "ping through the relay"
    assert (tmp_path / "relay" / "ca.pem").exists()


async def test_a_step_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "relay").write_text("not a directory")
    status, lines = await run("--once", "--dir", str(tmp_path))
    assert status == 1
    assert lines[0].startswith("failed  start the relay")


async def test_an_interruption_names_the_step(tmp_path: Path) -> None:
    program = await Program.start("lab", "--once", "--dir", str(tmp_path))
    # The CA is made first, so the relay starts now.
    async with asyncio.timeout(PATIENCE):
        while not (tmp_path / "relay" / "ca.pem").exists():  # noqa: ASYNC110  another process decides when
            await asyncio.sleep(0.01)
    program.signal(signal.SIGINT)
    line = await program.wait_log("failed")
    assert "interrupted" in line["event"]
    async with asyncio.timeout(PATIENCE):
        assert await program.process.wait() == 1
    await program.terminate()


async def test_what_does_not_answer_is_shown_and_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Lab):
        async def round_trip(self) -> float:
            raise TimeoutError

        async def peers(self) -> list[dict[str, Any]]:
            return [{"role": "agent", "error": "no answer"}]

    monkeypatch.setattr(labs, "REFRESH", 0.0)
    console = Console(width=200, file=io.StringIO())
    async with contextlib.AsyncExitStack() as stack:
        with Live(console=console, auto_refresh=False) as live:
            await labs._look(Broken(Path(), stack), live)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "ping through the relay: lost" in said
    assert "no answer" in said


@pytest.mark.parametrize("kind", ["relay", "agent", "connector", "application"])
async def test_what_does_not_begin_is_ended(
    start_relay: StartRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    relay = await start_relay()
    begun: list[Program] = []
    begin = Program.__init__

    def keep(program: Program, process: asyncio.subprocess.Process) -> None:
        begun.append(program)
        begin(program, process)

    async def wait_log(*_: object, **__: object) -> dict[str, Any]:
        raise ProgramError("it never came")

    monkeypatch.setattr(Program, "__init__", keep)
    monkeypatch.setattr(Program, "wait_log", wait_log)
    starting: dict[str, Callable[[], Awaitable[Program]]] = {
        "relay": lambda: Relay.begin(tmp_path / "other"),
        "agent": lambda: Agent.begin(relay, [("tcp", "web")]),
        "connector": lambda: Connector.begin(relay, {"web": "tcp://127.0.0.1:1"}),
        "application": lambda: Application.begin("http"),
    }
    with pytest.raises(ProgramError, match="it never came"):
        await starting[kind]()
    assert [program.ended for program in begun] == [True]


async def test_the_lab_stays_until_it_is_ended() -> None:
    program = await Program.start("lab")
    await program.wait_log("nc -u")
    # Ctrl-C is for the lab alone, which ends them in order.
    for child in psutil.Process(program.process.pid).children():
        assert os.getpgid(child.pid) == child.pid
    program.signal(signal.SIGINT)
    async with asyncio.timeout(PATIENCE):
        assert await program.process.wait() == 0
    await program.terminate()


async def test_the_fixtures_make_a_network(
    start_relay: StartRelay,
    start_connector: StartConnector,
    start_agent: StartAgent,
    start_application: StartApplication,
) -> None:
    relay = await start_relay()
    page = await start_application("http")
    await start_connector(relay, {"web": "tcp://{}:{}".format(*page.address)})
    agent = await start_agent(relay, [("tcp", "web")])
    host, _, port = agent.addresses[0].rpartition(":")
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(len(PAGE)) == PAGE
        writer.close()
        await writer.wait_closed()
