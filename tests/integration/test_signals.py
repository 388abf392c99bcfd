"""What SIGHUP and SIGTERM do to each program, whatever it is at."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import textwrap
import time
from pathlib import Path

import pytest

from intermediate_server.testing import Agent, Program, Relay
from intermediate_server.testing.plugin import Programs, StartAgent, StartConnector, StartRelay
from intermediate_server.testing.programs import PATIENCE
from intermediate_server.types import Role

SOON = 5.0
"""A second by design; the rest is for a host that does other things too. A look-up here takes far longer."""

HANGING_NAMES = """
    import socket, sys, time
    real = socket.getaddrinfo
    def getaddrinfo(host, *args, **kwargs):
        if str(host).endswith(".example"):
            print('{"event": "asked ' + str(host) + '"}', file=sys.stderr, flush=True)
            time.sleep(60)
        return real(host, *args, **kwargs)
    socket.getaddrinfo = getaddrinfo
"""
"""A name server that does not answer, as sitecustomize of a program."""


HANG_UP_AT_FIRST = """
    import os, signal, sys
    class Finder:
        def find_spec(name, *_):
            if name == "intermediate_server.cli.app":
                os.kill(os.getpid(), signal.SIGHUP)
    sys.meta_path.insert(0, Finder)
"""
"""A SIGHUP before anything but the command line has been read, as sitecustomize of a program."""


def customized(directory: Path, code: str) -> dict[str, str]:
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(textwrap.dedent(code))
    return {**os.environ, "PYTHONPATH": str(directory)}


@pytest.fixture
def hanging(tmp_path: Path) -> dict[str, str]:
    return customized(tmp_path / "site", HANGING_NAMES)


@pytest.fixture
def hung_up(tmp_path: Path) -> dict[str, str]:
    return customized(tmp_path / "site", HANG_UP_AT_FIRST)


@pytest.mark.parametrize(
    "arguments",
    [
        ["agent", "--server", "relay.example", "--forward", "tcp:127.0.0.1:0=web"],
        ["connector", "--server", "127.0.0.1:1", "--service", "web=tcp://app.example:80"],
        ["connector", "--server", "relay.example", "--service", "web=tcp://app.example:80"],
    ],
)
async def test_an_end_ends_whatever_look_up_is_under_way(
    programs: Programs, hanging: dict[str, str], tmp_path: Path, arguments: list[str]
) -> None:
    flags = ["--no-verify-peer", "--status-socket", str(tmp_path / "s"), "--log-format", "json"]
    program = await programs.keep(Program.start(*arguments, *flags, env=hanging))
    for host in [text.split("//")[-1].partition(":")[0] for text in arguments if ".example" in text]:
        await program.wait_log(f"asked {host}")
    begun = time.monotonic()
    program.signal(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE):
        assert await program.process.wait() == 0
    assert time.monotonic() - begun < SOON


async def test_services_that_need_no_name_do_not_wait_for_those_that_do(
    start_relay: StartRelay, programs: Programs, hanging: dict[str, str], tmp_path: Path
) -> None:
    relay = await start_relay()
    cert, key = relay.issue(Role.CONNECTOR, "connector", ["web", "db"])
    flags = ["--server", "{}:{}".format(*relay.address), "--server-name", "ztna-server"]
    flags += ["--ca-cert", str(relay.ca_file), "--cert", str(cert), "--key", str(key)]
    flags += ["--status-socket", str(tmp_path / "s"), "--log-format", "json"]
    services = ["--service", "web=tcp://app.example:80", "--service", "db=tcp://127.0.0.1:1"]
    connector = await programs.keep(Program.start("connector", *flags, *services, env=hanging))
    await connector.wait_log("Registered as connector for service 'db'")


@pytest.mark.parametrize("command", ["serve", "agent", "connector"])
async def test_a_hangup_ends_no_program_from_its_first_instant_on(
    programs: Programs, hung_up: dict[str, str], tmp_path: Path, command: str
) -> None:
    arguments = {
        "serve": ["--bind", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--state-dir", str(tmp_path / "state")],
        "agent": ["--server", "127.0.0.1:1", "--no-verify-peer", "--forward", "tcp:127.0.0.1:0=web"],
        "connector": ["--server", "127.0.0.1:1", "--no-verify-peer", "--service", "web=tcp://127.0.0.1:1"],
    }[command]
    if command != "serve":
        arguments += ["--status-socket", str(tmp_path / "s")]
    program = await programs.keep(Program.start(command, *arguments, "--log-format", "json", env=hung_up))
    # It is not lost either.
    await program.wait_log("Registrations re-authorized" if command == "serve" else "Connecting to")
    program.signal(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE):
        assert await program.process.wait() == 0


@pytest.mark.parametrize("role", [Role.AGENT, Role.CONNECTOR])
async def test_a_hangup_brings_new_certificates_into_use(
    start_relay: StartRelay, start_agent: StartAgent, start_connector: StartConnector, role: Role
) -> None:
    relay: Relay = await start_relay()
    end: Agent | Program
    if role is Role.AGENT:
        end = await start_agent(relay, [("tcp", "web")])
    else:
        end = await start_connector(relay, {"web": "tcp://127.0.0.1:1"})
    flags = (Path("/proc") / str(end.process.pid) / "cmdline").read_text().split("\0")
    cert, key = (Path(flags[flags.index(flag) + 1]) for flag in ("--cert", "--key"))
    other = relay.issue(role, "renewed", ["web"])
    broken = cert.read_bytes()
    cert.write_text("no certificate")
    end.signal(signal.SIGHUP)
    line = await end.wait_log("The connection stays as it is")
    assert str(cert) in line["reason"]
    cert.write_bytes(broken)
    shutil.copy(other[0], cert)
    shutil.copy(other[1], key)
    end.signal(signal.SIGHUP)
    await end.wait_log("Registered as", count=2)
    await relay.wait_log("Connection closed", reason="replaced")
    seen = [line["identity"] for line in relay.lines if str(line["event"]).startswith("New connection")]
    assert len(set(seen)) == 2
