"""The tour of README.md, as printed, on three hosts that have nothing in common but a network.

With ``ZTNA_WHEEL=dist/NAME.whl`` in the environment it begins with ``pip install`` on each host, and the time that is
printed counts from there; else the programs run from this tree.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
import venv
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.netns import Host, Network
from tests.integration.commands import PATIENCE

README = Path(__file__).resolve().parents[2] / "README.md"
RELAY = "203.0.113.1"
"""The address of relay.example.com, which no name server knows."""
STAYS = {"serve": "Server listening on", "connector": "Registered as", "agent": "Registered as"}
"""The commands that go on, and what they log once they are ready."""
LONGEST = 60.0
"""Seconds from the start until the first page, by the design; a busy machine may take all of them."""


@dataclass
class Machine:
    """One host with a name and files of its own."""

    host: Host
    name: str
    home: Path
    programs: Path
    """The directory of ``intermediate-server`` and ``python3``."""
    logs: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def begin(self, command: str) -> asyncio.subprocess.Process:
        """Begin a command line in a shell of this host."""
        environment = {
            "HOME": str(self.home),
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            # For root, as tests with networks are, the usual one would be one for all.
            "STATE_DIRECTORY": str(self.home / ".local/state/intermediate-server"),
            "RUNTIME_DIRECTORY": str(self.home / "run"),
            "PYTHONPATH": "" if "ZTNA_WHEEL" in os.environ else os.environ.get("PYTHONPATH", ""),
        }
        return await asyncio.create_subprocess_exec(
            *self.host.within,
            *("unshare", "--uts", "sh", "-c", f'hostname {self.name} && exec sh -c "$0"', f"exec {command}"),
            env=environment,
            cwd=self.home,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, command: str) -> tuple[int, str, str]:
        """Run a command line to its end."""
        process = await self.begin(command)
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    async def until(self, command: str) -> None:
        """Repeat a command until it succeeds."""
        async with asyncio.timeout(PATIENCE):
            while (await self.run(command))[0]:  # noqa: ASYNC110  another process decides when
                await asyncio.sleep(0.1)

    async def stay(self, command: str, ready: str = "") -> None:
        """Begin a command line that goes on, and wait until it is ready."""
        process = await self.begin(command)
        self.logs.append(process)
        lines: list[str] = []
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while ready and not any(ready in line for line in lines):
                line = await process.stderr.readline()
                assert line, f"{command} has ended: {lines}"
                lines.append(line.decode())

    async def end(self) -> None:
        for process in self.logs:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture
async def machines(network: Network, running: AsyncExitStack, tmp_path: Path) -> dict[str, Machine]:
    """The relay between the two others, which do not see each other."""
    made = {}
    for name in ("relay", "office", "laptop"):
        home = tmp_path / name
        (home / "run").mkdir(parents=True)
        made[name] = Machine(network.host(), name, home, Path(sys.executable).parent)
        running.push_async_callback(made[name].end)
    relay = made["relay"].host
    relay.ip(f"addr add {RELAY}/32 dev lo")
    for number, name in enumerate(("office", "laptop"), start=1):
        network.link(relay, made[name].host, [(f"10.{number}.0.1/24", f"10.{number}.0.2/24")])
        made[name].host.route("default", f"10.{number}.0.1")
    return made


def install(machine: Machine, wheel: str) -> None:
    """What ``pip install`` does, in an environment of that host's own."""
    directory = machine.home / "venv"
    venv.create(directory, with_pip=True)
    import subprocess

    extra = "[server]" if machine.name == "relay" else ""
    pip = [
        str(directory / "bin/pip"),
        "install",
        "--quiet",
        "--disable-pip-version-check",
        f"{Path(wheel).resolve()}{extra}",
    ]
    subprocess.run(pip, check=True, timeout=PATIENCE * 5)
    machine.programs = directory / "bin"


def tour() -> list[tuple[str, str, list[str]]]:
    """Each command of the tour: its host, the command, and the lines that it prints."""
    section = README.read_text().partition("## A tour")[2].partition("\n## ")[0]
    steps: list[tuple[str, str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL):
        for line in block.splitlines():
            if prompt := re.fullmatch(r"(\w+)\$ (.*)", line):
                steps.append((prompt[1], prompt[2], []))
            else:
                steps[-1][2].append(line)
    return steps


def pattern(line: str, home: Path) -> str:
    """What a printed line of the tour may be: another time, date, token or home."""
    text = re.escape(line).replace(re.escape("/home/u"), re.escape(str(home)))
    text = re.sub(r"ztj1_\w+\\\.\\\.\\\.", r"ztj1_[\\w-]+", text)
    text = re.sub(r"\d{4}\\-\d\d\\-\d\d", r"\\d{4}-\\d\\d-\\d\\d", text)
    text = re.sub(r"(?:\d+\\\.){3}\d+:\d{5}", r"10\\.2\\.0\\.2:\\d+", text)
    return re.sub(r"\b\d\d:\d\d\b", r"[\\d -]*\\d\\d:\\d\\d", text).replace("\\ ", " ").replace("  ", " +")


async def answered(relay: Machine) -> dict[str, str]:
    """The requests to join that the relay has answered, by outcome."""
    _, metrics, _ = await relay.run("curl -s http://127.0.0.1:9090/metrics")
    assert "ztna_joins_total" in metrics
    return dict(re.findall(r'^ztna_joins_total\{outcome="([\w-]+)"\} (\d+)', metrics, re.MULTILINE))


async def test_the_tour_of_the_readme(machines: dict[str, Machine], capsys: pytest.CaptureFixture[str]) -> None:
    wheel = os.environ.get("ZTNA_WHEEL")
    begun = time.monotonic()
    if wheel is not None:
        await asyncio.gather(*(asyncio.to_thread(install, machine, wheel) for machine in machines.values()))
    tokens: dict[str, str] = {}
    typed = dict.fromkeys(machines, 0)
    first = None
    for name, written, expected in tour():
        machine = machines[name]
        command = written.replace("relay.example.com", RELAY).removesuffix(" &")
        for placeholder, token in tokens.items():
            command = command.replace(placeholder, token)
        words = command.split()
        typed[name] += words[0] == "intermediate-server"
        if written.endswith("&"):
            await machine.stay(command)
            await machine.until("curl -s -o /dev/null http://127.0.0.1:8080/")
            continue
        ready = next((STAYS[word] for word in words if word in STAYS), None)
        if ready is not None and words[-1] != "status":
            await machine.stay(command, ready)
            continue
        if words[:2] == ["python3", "me.py"]:
            (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
            await asyncio.to_thread((machine.home / "me.py").write_text, program)
        code, out, err = await machine.run(command)
        assert code == 0, (command, err)
        assert not err or words[0] == "curl", (command, err)
        if words[0] == "curl":
            first = time.monotonic() - begun
            assert "Directory listing" in out
        for line, told in zip(expected, out.splitlines(), strict=bool(expected)):
            wanted = pattern(line, machine.home)
            assert re.fullmatch(wanted, told), (wanted, told)
            if written.startswith("intermediate-server token create"):
                tokens[re.findall(r"ztj1_\w+\.\.\.", line)[0]] = re.findall(r"ztj1_[\w-]+", told)[0]
    assert first is not None
    with capsys.disabled():
        how = "pip install of the wheel" if wheel else "the first command, from the tree"
        print(f"\nfirst page {first:.1f} s after the start of {how}")
    assert first < LONGEST or wheel is None
    assert (typed["office"], typed["laptop"]) == (2, 3), "two commands per host, and a look at the status"

    # A private key is on the host that made it, and nowhere else.
    for name, machine in machines.items():
        held = [path.name for path in machine.home.rglob("*.ztna")]
        assert held == {"relay": [], "office": ["connector.ztna"], "laptop": ["agent.ztna"]}[name]
    assert not list(machines["relay"].home.rglob("issued/*.key"))

    assert await answered(machines["relay"]) == {"ok": "2"}

    # The same token on a second host.
    spent = next(token for token in tokens.values())
    code, out, err = await machines["laptop"].run(f"intermediate-server join {spent}")
    assert (code, out) == (1, "")
    assert re.search(r'token was used by "office" at .*\d\d:\d\d', err), err


async def test_another_ca_gets_no_byte_of_the_token(machines: dict[str, Machine]) -> None:
    relay, office = machines["relay"], machines["office"]
    serve = f"intermediate-server serve --public-address {RELAY} --state-dir"
    await relay.stay(f"{serve} first", "Server listening on")
    code, out, err = await relay.run("intermediate-server token create web --role connector --state-dir first")
    assert code == 0, err
    token = re.findall(r"ztj1_[\w-]+", out)[0]
    await relay.end()
    await relay.stay(f"{serve} second", "Server listening on")
    code, out, err = await office.run(f"intermediate-server join {token}")
    assert code == 1
    assert "this is not the relay that the join token is for" in err
    assert await answered(relay) == {}, "it was asked nothing"
