"""Hosts that lack something: what does not need it goes on, and what does says so in one line."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from intermediate_server.client import ClientEngine
from intermediate_server.errors import CertificateError
from intermediate_server.pki import Authority, ensure_development
from intermediate_server.testing.plugin import Programs
from intermediate_server.testing.programs import Program
from intermediate_server.types import Role
from tests.integration.commands import PATIENCE, PROGRAM, environment, run
from tests.integration.conftest import Server, StartServer

NO_IPV6 = """
import ctypes, os, platform, struct, sys
# A filter (seccomp(2)) that answers socket(AF_INET6, ...) as a kernel without IPv6 does.
arch, number = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}[platform.machine()]
code = [(0x20, 0, 0, 4), (0x15, 0, 5, arch), (0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16),
        (0x15, 0, 1, 10), (0x06, 0, 0, 0x00050000 | 97), (0x06, 0, 0, 0x7FFF0000)]
program = b"".join(struct.pack("<HBBI", *each) for each in code)
buffer = ctypes.create_string_buffer(program)
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Filter(len(code), ctypes.addressof(buffer)))) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
"""
WITHOUT_IPV6 = (sys.executable, "-c", NO_IPV6)


def read_only(directory: Path) -> tuple[str, ...]:
    """What a command line begins with whose ``directory`` is on a read-only file system. Skips where it cannot be."""
    where = shlex.quote(str(directory))
    script = f'mount --bind {where} {where} && mount -o remount,ro,bind {where} && exec "$@"'
    command = ("unshare", "--mount", "sh", "-c", script, "sh")
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no mount namespace can be made")
    return command


async def test_a_taken_port_of_metrics_stops_nothing_and_is_had_later(
    start_server: StartServer, engine: ClientEngine
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = await start_server("--metrics-port", str(port), "--client-auth", "off")
        line = await server.wait_log(f"Health and metrics wait for 127.0.0.1 port {port}")
        assert "--metrics-port" in line["event"]
        connection = await engine.connect(server.address, ca_file=server.ca_file, server_name="ztna-server")
        await connection.register(Role.AGENT, "web")
    await server.wait_log("Admin listening on")
    assert await server.metric("ztna_registrations_total") == 1


def test_a_taken_local_port_of_an_agent_names_the_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = ("--server", "127.0.0.1:9", "--no-verify-peer")
        done = run(tmp_path, "agent", *server, "--forward", f"tcp:127.0.0.1:{port}=web", "--log-level", "error")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: 127.0.0.1:{port}: Address already in use (os error 98); name another address or port with --forward\n"
    )


async def test_a_state_directory_that_cannot_be_written_stops_only_who_needs_it(
    programs: Programs, engine: ClientEngine, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "pki")
    authority.init()
    made = ensure_development(tmp_path / "pki", names=())
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    within = read_only(fixed)
    files = ("--cert", str(made.cert), "--key", str(made.key), "--ca-cert", str(made.ca_cert))
    server: Server = await programs.keep(Server.begin(fixed / "state", *files, within=within))
    line = await server.wait_log("Nothing is kept over a restart")
    assert "Read-only file system" in line["reason"]
    authority.issue(Role.AGENT, "laptop", services=["web"])
    connection = await engine.connect(
        server.address,
        ca_file=made.ca_cert,
        cert_file=authority.certificate_file("laptop"),
        key_file=authority.key_path("laptop"),
        server_name="ztna-server",
    )
    await connection.register(Role.AGENT, "web")
    needing = await Program.start("serve", "--port", "0", "--state-dir", str(fixed / "state"), within=within)
    async with needing:
        await needing.wait_log("Read-only file system; name another with --state-dir")
        assert await asyncio.wait_for(needing.process.wait(), PATIENCE) == 2
    assert len(needing.lines) == 2, "one line, and the end"


async def test_an_agent_does_without_its_status_socket_unless_it_was_named(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server("--client-auth", "off")
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    within = read_only(fixed)
    flags = ["agent", "--server", "{}:{}".format(*server.address), "--ca-cert", str(server.ca_file)]
    flags += ["--server-name", "ztna-server", "--forward", "tcp:127.0.0.1:0=web", "--log-format", "json"]
    env = {**environment(tmp_path), "RUNTIME_DIRECTORY": str(fixed)}
    async with await Program.start(*flags, env=env, within=within) as agent:
        line = await agent.wait_log("The status command will find nothing")
        assert "Read-only file system" in line["reason"]
        await agent.wait_log("Registered as")
    async with await Program.start(*flags, "--status-socket", str(fixed / "s"), env=env, within=within) as agent:
        await agent.wait_log("error: cannot open the status socket")
        assert await asyncio.wait_for(agent.process.wait(), PATIENCE) == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_get_nothing_of_what_is_opened_next(tmp_path: Path, closed: str) -> None:
    log = tmp_path / "audit.jsonl"
    flags = ["serve", "--port", "0", "--bind", "127.0.0.1", "--metrics-port", "0", "--audit-log", str(log)]
    command = f"exec {shlex.join([*PROGRAM, *flags])} {closed}"
    nothing = subprocess.DEVNULL
    with subprocess.Popen(
        ["/bin/sh", "-c", command],
        env=environment(tmp_path),
        cwd=tmp_path,
        stdin=nothing,
        stdout=nothing,
        stderr=nothing,
    ) as process:
        try:
            # The last of what a start makes.
            while not any(what.startswith("socket:") for what in descriptors(process.pid).values()):
                assert process.poll() is None
                time.sleep(0.01)
            assert {descriptors(process.pid)[number] for number in range(3)} == {"/dev/null"}
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) in (0, -signal.SIGTERM)
        finally:
            process.kill()


def descriptors(pid: int) -> dict[int, str]:
    """What the open descriptors of a process are."""
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found[int(path.name)] = str(path.readlink())
    return found


def test_a_closed_standard_output_is_no_audit_log(tmp_path: Path) -> None:
    command = f"exec {shlex.join([*PROGRAM, 'serve', '--port', '0', '--audit-log', '-'])} >&-"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "standard output is closed; name a file with --audit-log" in done.stderr


async def test_a_kernel_without_ipv6_stops_nothing(programs: Programs, tmp_path: Path) -> None:
    server: Server = await programs.keep(Server.begin(tmp_path / "state", bind="0.0.0.0", within=WITHOUT_IPV6))
    cert, key = server.certificate(["agent.web.ztna"])
    common = [
        "--server",
        f"127.0.0.1:{server.address[1]}",
        "--server-name",
        "ztna-server",
        "--ca-cert",
        str(server.ca_file),
    ]
    common += ["--cert", str(cert), "--key", str(key)]
    flags = [
        *common,
        "--forward",
        "tcp:127.0.0.1:0=web",
        "--log-format",
        "json",
        "--status-socket",
        str(tmp_path / "s"),
    ]
    async with await Program.start("agent", *flags, within=WITHOUT_IPV6) as agent:
        await agent.wait_log("Registered as")
        check = await Program.start("netcheck", *common, within=WITHOUT_IPV6)
        async with check:
            await check.wait_log("reachable: round trip")


def test_a_kernel_without_ipv6_says_so_where_it_is_asked_for(tmp_path: Path) -> None:
    flags = ["serve", "--port", "0", "--bind", "::", "--metrics-port", "0"]
    done = run(tmp_path, *flags, within=WITHOUT_IPV6)
    assert done.returncode == 1
    assert "this kernel has no IPv6; name an IPv4 address with --bind" in done.stderr


async def test_every_address_without_ipv6_is_every_one_of_ipv4(programs: Programs, tmp_path: Path) -> None:
    arguments = ["serve", "--port", "0", "--state-dir", str(tmp_path / "state"), "--metrics-port", "0"]
    async with await Program.start(*arguments, within=WITHOUT_IPV6) as server:
        await server.wait_log("Server listening on 0.0.0.0:")


@pytest.mark.parametrize("clock", [datetime(1970, 1, 1, 0, 5, tzinfo=UTC), datetime(2000, 1, 1, tzinfo=UTC)])
def test_a_clock_from_long_ago_makes_no_certificate(tmp_path: Path, clock: datetime) -> None:
    with pytest.raises(CertificateError, match=f"the clock says {clock:%Y-%m-%d %H:%M} UTC"):
        ensure_development(tmp_path / "new", names=(), now=clock)
    assert not (tmp_path / "new" / "ca.pem").exists()
    made = ensure_development(tmp_path / "old", names=())
    again = ensure_development(tmp_path / "old", names=(), now=clock)
    assert again.certificate_pem == made.certificate_pem, "what is there is used"
    with pytest.raises(CertificateError, match="the clock says"):
        Authority(tmp_path / "old").issue(Role.AGENT, "a", services=["web"], now=clock)
    assert Authority(tmp_path / "old").entries() == []
    ensure_development(tmp_path / "late", names=(), now=datetime.now(UTC) + timedelta(days=1))


def test_a_taken_port_names_the_flag(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        number = str(taken.getsockname()[1])
        done = run(tmp_path, "serve", "--bind", "127.0.0.1", "--port", number, "--metrics-port", "0")
    assert done.returncode == 1
    assert f"127.0.0.1:{number}" in done.stderr
    assert "another program has it, a relay perhaps; name another port with --port" in done.stderr


async def test_the_first_start_says_what_to_do_next(start_server: StartServer, tmp_path: Path) -> None:
    state = tmp_path / "with space"
    first = await start_server(state_dir=state)
    assert str(state / "ca.pem") in (await first.wait_log("Made a CA"))["event"]
    line = (await first.wait_log("Next, let a device join: "))["event"].partition(": ")[2]
    words = [{"NAME": "office", "SERVICE": "web"}.get(word, word) for word in shlex.split(line)]
    assert words[0] == "intermediate-server"
    done = run(tmp_path, *words[1:], env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" join ztj1_") == 2
    await first.terminate()
    second = await start_server(state_dir=state)
    assert not any("Next, let a device join" in line["event"] for line in second.lines)
