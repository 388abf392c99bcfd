"""The lab, and the pieces it is made of, as somebody uses them who installed the package."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

from intermediate_server.testing import Program
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


async def test_the_lab_stays_until_it_is_ended() -> None:
    program = await Program.start("lab")
    await program.wait_log("nc -u")
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
