"""The tour of README.md: what it promises beside its commands.

With ``ZTNA_WHEEL=dist/NAME.whl`` in the environment it begins with ``pip install`` for each host, and the time that is
printed counts from there; else the programs run from this tree.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.docs import page
from tests.docs.conftest import Hosts
from tests.docs.machine import PATIENCE, Machine, Typed, until
from tests.docs.page import ROOT
from tests.docs.run import Run

LONGEST = 60.0
"""Seconds from the start until the first page, by the design; a busy machine may take all of them."""
HOSTS = ["relay", "office", "laptop"]


def install(directory: Path, wheel: Path, extra: str) -> Path:
    """What ``pip install`` does, in an environment of its own."""
    venv.create(directory, with_pip=True)
    pip = [f"{directory}/bin/pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel.resolve()}{extra}"]
    subprocess.run(pip, check=True, timeout=PATIENCE * 5)
    return directory


def run(machine: Machine, command: str) -> Typed:
    """Run a command of the user to its end."""
    typed = machine.terminal(root=False).type(command)
    assert until(lambda: typed.status is not None), typed.printed
    return typed


def serve(machine: Machine, state: str) -> Typed:
    """Start a relay, with its state in this directory, in place of the one that runs."""
    command = f"intermediate-server serve --public-address relay.example.com --state-dir {state}"
    typed = machine.terminal(root=False).type(command, stays=True)
    assert until(lambda: "Server listening on" in typed.printed), typed.printed
    return typed


def answered(relay: Machine) -> dict[str, str]:
    """The requests to join that the relay has answered, by outcome."""
    metrics = run(relay, "curl -s http://127.0.0.1:9090/metrics").printed
    assert "ztna_joins_total" in metrics
    return dict(re.findall(r'^ztna_joins_total\{outcome="([\w-]+)"\} (\d+)', metrics, re.MULTILINE))


def test_the_tour_of_the_readme(hosts: Hosts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = page.read(ROOT / "README.md")
    wheel = os.environ.get("ZTNA_WHEEL")
    begun = time.monotonic()
    programs: dict[str, Path] = {}
    if wheel is not None:
        with ThreadPoolExecutor() as pool:
            made = {
                name: pool.submit(install, tmp_path / name, Path(wheel), "[server]" if name == "relay" else "")
                for name in HOSTS
            }
            programs = {name: future.result() for name, future in made.items()}
    machines = hosts(readme.hosts, programs)
    running = Run(readme, machines)
    running.all()
    first = next(
        moment - begun for command, moment in running.done if command.text.startswith("curl http://127.0.0.1:8081")
    )
    with capsys.disabled():
        how = "pip install of the wheel" if wheel else "the first command, from the tree"
        print(f"\nfirst page {first:.1f} s after the start of {how}")
    assert first < LONGEST or wheel is None
    typed = [command.host for command in readme.commands if command.text.startswith("intermediate-server ")]
    assert (typed.count("office"), typed.count("laptop")) == (2, 3), "two commands per host, and a look at the status"

    # A private key is on the host that made it, and nowhere else.
    for name in HOSTS:
        held = [path.name for path in machines[name].path("").rglob("*.ztna")]
        assert held == {"relay": [], "office": ["connector.ztna"], "laptop": ["agent.ztna"]}[name]
    assert not list(machines["relay"].path("").rglob("issued/*.key"))

    assert answered(machines["relay"]) == {"ok": "2"}

    # The same token on a second host.
    spent = next(token for token in running.known.values() if token.startswith("ztj1_"))
    again = run(machines["laptop"], f"intermediate-server join {spent}")
    assert again.status == 1
    assert re.search(r'token was used by "office" at .*\d\d:\d\d', again.printed), again.printed


def test_another_ca_gets_no_byte_of_the_token(hosts: Hosts) -> None:
    machines = hosts(["relay", "office"])
    relay = machines["relay"]
    first = serve(relay, "first")
    token = run(relay, "intermediate-server token create web --role connector --state-dir first")
    assert token.status == 0, token.printed
    run(relay, "pkill intermediate-se")
    assert until(lambda: first.status is not None)
    serve(relay, "second")
    (text,) = re.findall(r"ztj1_[\w-]+", token.printed)
    join = run(machines["office"], f"intermediate-server join {text}")
    assert join.status == 1
    assert "this is not the relay that the join token is for" in join.printed
    assert answered(relay) == {}, "it was asked nothing"
