"""The programs do with the system calls and the memory rules that their units leave them."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from intermediate_server.testing import Agent, Application, Connector, Relay
from tests.integration.client_programs import fetch, url

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"

# As systemd does for SystemCallFilter= and MemoryDenyWriteExecute=: libseccomp's ALLOW, ERRNO(EPERM), prctl(2).
_SANDBOXED = """
import ctypes, os, sys
seccomp = ctypes.CDLL(sys.argv[1], use_errno=True)
seccomp.seccomp_init.restype = ctypes.c_void_p
filter = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(0x00050000 | 1)))
for name in sys.argv[2].split(","):
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        allow = ctypes.c_uint32(0x7FFF0000)
        assert seccomp.seccomp_rule_add(filter, allow, ctypes.c_int(number), ctypes.c_uint(0)) == 0
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(65, 1, 0, 0, 0) != 0:  # PR_SET_MDWE
    print("no PR_SET_MDWE", file=sys.stderr)
assert seccomp.seccomp_load(filter) == 0
os.execv(sys.argv[3], sys.argv[3:])
"""


def calls_of(group: str) -> set[str]:
    """The system calls in a group of systemd, those of its own groups included."""
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", group], capture_output=True, text=True, check=True
    )
    found: set[str] = set()
    for word in re.findall(r"^    (@?[a-z0-9_-]+)", listed.stdout, re.MULTILINE):
        found |= calls_of(word) if word.startswith("@") else {word}
    return found


def allowed(unit: Path) -> set[str]:
    """The system calls that a unit leaves to its service."""
    lines = re.findall(r"^SystemCallFilter=(.*)", unit.read_text(encoding="utf-8"), re.MULTILINE)
    found: set[str] = set()
    for line in lines:
        groups = line.removeprefix("~").split()
        change = set().union(*map(calls_of, groups))
        found = found - change if line.startswith("~") else found | change
    return found


@pytest.fixture(scope="module")
def sandbox() -> list[str]:
    """The beginning of a command line that ends within the rules of the units."""
    library = ctypes.util.find_library("seccomp")
    if library is None or shutil.which("systemd-analyze") is None:
        pytest.skip("libseccomp or systemd-analyze is not installed")
    units = [allowed(unit) for unit in sorted(DEPLOY.glob("*.service"))]
    assert len(units) == 3
    assert units[0] == units[1] == units[2]
    assert "setuid" not in units[0]
    return [sys.executable, "-c", _SANDBOXED, library, ",".join(sorted(units[0]))]


def test_the_sandbox_refuses(sandbox: list[str]) -> None:
    """The other test proves nothing without this one."""
    code = "import os; os.nice(1)"
    done = subprocess.run([*sandbox, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"[Errno {errno.EPERM}]" in done.stderr


async def test_relay_connector_and_agent_work_within_it(sandbox: list[str], tmp_path: Path) -> None:
    flags = ["--audit-log", str(tmp_path / "audit.jsonl")]
    async with await Relay.begin(tmp_path / "state", *flags, within=sandbox) as relay:
        async with (
            await Application.begin("http") as page,
            await Connector.begin(relay, {"web": url(page)}, within=sandbox),
            await Agent.begin(relay, [("tcp", "web")], within=sandbox) as agent,
        ):
            assert await fetch(agent.addresses[0])
            assert await agent.terminate() == 0
        assert await relay.terminate() == 0
