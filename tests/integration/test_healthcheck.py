"""``healthcheck`` beside running programs, as a container asks."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from intermediate_server.testing import Connector
from intermediate_server.testing.plugin import Programs, StartApplication, StartRelay
from tests.integration import commands
from tests.integration.relaying import free_port
from tests.integration.site import until

NOTHING = "neither server, agent nor connector runs here\n"


async def ask(tmp_path: Path, *arguments: str, **env: str) -> tuple[int, str]:
    """Exit status and answer; only what the test starts is looked at."""
    own = {"RUNTIME_DIRECTORY": str(tmp_path / "run"), "ZTNA_METRICS_PORT": "1", **env}
    done = await asyncio.to_thread(commands.run, tmp_path, "healthcheck", *arguments, env=own)
    return done.returncode, done.stdout + done.stderr


async def test_a_server_is_well_until_it_stands_still(start_relay: StartRelay, tmp_path: Path) -> None:
    assert await ask(tmp_path) == (1, NOTHING)
    port = free_port()
    relay = await start_relay("--metrics-port", str(port))
    here = {"STATE_DIRECTORY": str(relay.state_dir)}
    # The port is that of the server's flag.
    assert await ask(tmp_path, **here) == await ask(tmp_path, "server", **here) == (0, "server: ok\n")
    relay.signal(signal.SIGSTOP)
    try:
        status, text = await ask(tmp_path, **here)
        assert (status, text) == (1, f"server: no answer at http://127.0.0.1:{port}/livez: timed out\n")
    finally:
        relay.signal(signal.SIGCONT)
    await relay.terminate()
    status, text = await ask(tmp_path, **here)
    assert status == 1 and "Connection refused" in text


async def test_a_client_is_well_while_it_is_connected(
    start_relay: StartRelay, start_application: StartApplication, programs: Programs, tmp_path: Path
) -> None:
    relay = await start_relay()
    page = await start_application("http")
    backends = {"web": "tcp://{}:{}".format(*page.address)}
    connector = await programs.keep(Connector.begin(relay, backends))
    await connector.wait_registered()
    status, text = await ask(tmp_path, "connector")
    assert status == 1 and text.endswith("name its socket with --status-socket\n")
    well = (0, "connector: ok\n")
    assert await ask(tmp_path, "connector", "--status-socket", str(connector.socket)) == well
    assert await ask(tmp_path, ZTNA_CONNECTOR_STATUS_SOCKET=str(connector.socket)) == well
    (tmp_path / "run").mkdir()
    (tmp_path / "run/connector.sock").symlink_to(connector.socket)
    assert await ask(tmp_path) == well
    assert (await ask(tmp_path, "agent"))[0] == 1
    await relay.kill()

    async def missed() -> bool:
        status, text = await ask(tmp_path)
        return status == 1 and text.startswith(("connector: not connected: ", "connector: its relay is silent"))

    await until(missed, "a connector that misses its relay")
    await connector.kill()
    status, text = await ask(tmp_path)
    assert status == 1 and text.startswith("connector: no answer at ")


@pytest.mark.parametrize("named", [False, True])
async def test_another_program_at_the_port_is_no_server(named: bool, tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\n\x1b[31m")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        status, text = await ask(tmp_path, *["server"] * named, ZTNA_METRICS_PORT=str(port))
    assert status == 1
    assert text == (f"server: http://127.0.0.1:{port}/livez answers 404 '\\x1b[31m'\n" if named else NOTHING)


async def test_what_cannot_be_asked(tmp_path: Path) -> None:
    assert await ask(tmp_path, "server", ZTNA_METRICS_PORT="0") == (
        1,
        "server: metrics-port = 0 turns its health off\n",
    )
    for program in ([], ["server"]):
        status, text = await ask(tmp_path, *program, "--status-socket", "/s")
        assert status == 2 and "healthcheck agent" in text
    assert await ask(tmp_path, "relay") == (2, "error: 'relay' is none of server, agent, connector\n")
