"""Agents and connectors need few packages; whatever needs more says how to get it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest

import intermediate_server
from intermediate_server.testing import Agent, Application, Connector, Relay
from tests.integration.client_programs import fetch
from tests.integration.commands import PATIENCE, environment
from tests.wheelhouse import NAME, needed

HANDFUL = 8


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment as ``pip install intermediate-server`` makes it."""
    home = tmp_path_factory.mktemp("base")
    venv.create(home, with_pip=False)
    site = next((home / "lib").glob("python*/site-packages"))
    for found in needed(NAME).values():
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))).resolve())
    return home / "bin" / "python"


def what_was_installed() -> str:
    """The wheel of the tests' own environment, or the name where it came by it."""
    origin = json.loads(distribution(NAME).read_text("direct_url.json") or "{}").get("url", NAME)
    path = Path(origin.removeprefix("file://"))
    return str(path) if path.exists() else path.name


def run(base: Path, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [base, *arguments],
        env=environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_few_packages_are_needed() -> None:
    assert len(needed(NAME)) <= HANDFUL, sorted(needed(NAME))


@pytest.mark.parametrize(
    "command",
    [["--help"], ["agent", "--help"], ["connector", "--help"], ["netcheck", "--help"], ["pki", "--help"]],
    ids=" ".join,
)
def test_help_needs_no_more(base: Path, tmp_path: Path, command: list[str]) -> None:
    done = run(base, tmp_path, "-m", "intermediate_server", *command)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["serve", "--port", "0"], "server"),
        (["check-config"], "server"),
        (["lab", "--once"], "server"),
        (["agent", "--server", "127.0.0.1:1", "--no-verify-peer", "--tun", "--service", "web"], "tun"),
        (["connector", "check-config", "--server", "h:1", "--no-verify-peer", "--tun", "--service", "web"], "tun"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_what_needs_more_says_how_to_get_it(base: Path, tmp_path: Path, command: list[str], extra: str) -> None:
    done = run(base, tmp_path, "-m", "intermediate_server", *command)
    assert done.returncode == 2, done.stderr
    told = re.fullmatch(r"error: \w+ is not installed; run: (\S+) -m pip install '(\S+)\[(\w+)\]'\n", done.stderr)
    assert told is not None, done.stderr
    assert told.groups() == (str(base), what_was_installed(), extra)


@pytest.mark.parametrize("module", ["server", "admin", "policy.callout"])
def test_so_does_the_import_of_a_module(base: Path, tmp_path: Path, module: str) -> None:
    done = run(base, tmp_path, "-c", f"import intermediate_server.{module}")
    assert f"pip install '{what_was_installed()}[server]'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("package", ["click", "idna", "structlog", "cryptography"])
def test_a_package_that_everything_needs(base: Path, tmp_path: Path, package: str) -> None:
    """As ``pip install --no-deps`` leaves it."""
    hidden = f"import sys; sys.modules[{package!r}] = None"
    command = ["agent", "--server", "127.0.0.1:1", "--no-verify-peer", "--forward", "tcp:127.0.0.1:0=web"]
    start = f"from intermediate_server.cli import main; sys.exit(main({command!r}))"
    done = run(base, tmp_path, "-c", f"{hidden}; {start}")
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {package} is not installed; run: {base} -m pip install {what_was_installed()}\n",
    )


@pytest.mark.parametrize("engine", [None, b"", b"\x7fELF of another machine"])
def test_an_engine_that_cannot_be_loaded(base: Path, tmp_path: Path, engine: bytes | None) -> None:
    """As in a checkout that is not built, or with the wheel of another system."""
    package = Path(intermediate_server.__file__).parent
    shutil.copytree(package, tmp_path / "intermediate_server", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if engine is not None:
        (tmp_path / "intermediate_server" / "_engine.abi3.so").write_bytes(engine)
    command = ["agent", "--server", "127.0.0.1:1", "--no-verify-peer", "--forward", "tcp:127.0.0.1:0=web"]
    done = run(base, tmp_path, "-m", "intermediate_server", *command)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the engine cannot be loaded: ")
    assert done.stderr.endswith("in a checkout run: make build\n")
    assert len(done.stderr.splitlines()) == 1


async def test_agent_and_connector_without_the_packages_of_a_relay(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await Relay.begin(tmp_path / "state") as relay, await Application.begin("http") as page:
        monkeypatch.setattr(sys, "executable", str(base))
        async with (
            await Connector.begin(relay, {"web": "tcp://{}:{}".format(*page.address)}),
            await Agent.begin(relay, [("tcp", "web")]) as agent,
        ):
            assert await fetch(agent.addresses[0])
