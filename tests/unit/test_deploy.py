"""What deploy/ ships: a systemd unit that gives the service little, and a sample configuration that names every key."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from tools.sample_config import EXAMPLES, MODELS, PAGE, examples, render, render_page, units

from intermediate_server.cli.unit import ANYWHERE, PROGRAM, Place
from intermediate_server.cli.unit import render as render_unit
from intermediate_server.config import Settings, resolve_client
from intermediate_server.config.callout import read_callout
from intermediate_server.config.clients import AgentSettings, ClientSettings, ConnectorSettings
from intermediate_server.policy.rules_file import parse_rules

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SERVICES = sorted(DEPLOY.glob("*.service"))
SAMPLES = sorted(MODELS)
BY_HAND = ("Dockerfile", "compose.yaml", "packages", "chart")
CLIENTS: dict[str, type[ClientSettings]] = {"agent.toml": AgentSettings, "connector.toml": ConnectorSettings}

# systemd's scale: 0 is sealed off, 10 is unconfined.
HIGHEST_EXPOSURE = 2.0
HIGHEST_EXPOSURE_TUN = 3.5


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def exposure(unit: Path) -> float:
    """How much a service could do, as systemd rates it."""
    result = analyze("security", "--offline=true", "--no-pager", unit)
    if "offline" in result.stderr and result.returncode != 0:
        pytest.skip(f"this systemd-analyze cannot rate a file: {result.stderr.strip()}")
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", result.stdout)
    assert match, result.stdout + result.stderr
    return float(match[1])


def installed(unit: Path, tmp_path: Path) -> Path:
    """The unit with a program that exists here."""
    made = tmp_path / unit.name
    program = str(ANYWHERE / "bin" / PROGRAM)
    made.write_text(unit.read_text(encoding="utf-8").replace(program, shutil.which("true") or "/bin/true"))
    return made


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_unit_exposure_is_low(unit: Path) -> None:
    assert exposure(unit) <= HIGHEST_EXPOSURE


@pytest.mark.parametrize("name", ["agent", "connector"])
def test_so_it_is_with_a_tun_interface(name: str, tmp_path: Path) -> None:
    """A drop-in rates only with its unit, which needs no directory of drop-ins: later lines win."""
    unit = DEPLOY / f"intermediate-server-{name}.service"
    both = tmp_path / unit.name
    text = unit.read_text(encoding="utf-8").replace("[Install]\nWantedBy=multi-user.target\n", "")
    both.write_text(text + (DEPLOY / "tun.conf").read_text(encoding="utf-8"))
    assert exposure(unit) < exposure(both) <= HIGHEST_EXPOSURE_TUN, "the drop-in must count"


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    joining = tmp_path / "in" / "intermediate-server-joining.service"
    joining.parent.mkdir()
    joining.write_text(render_unit("agent", Place(str(ANYWHERE / "bin" / PROGRAM)), join=True))
    units = [installed(unit, tmp_path) for unit in (*SERVICES, DEPLOY / "intermediate-server.socket", joining)]
    # The drop-in of the agent, where systemd looks for it.
    drop_in = tmp_path / "intermediate-server-agent.service.d"
    drop_in.mkdir()
    shutil.copy(DEPLOY / "tun.conf", drop_in)
    result = analyze("verify", "--man=no", *units)
    told = [line for line in result.stderr.splitlines() if str(tmp_path) in line or "intermediate-server" in line]
    assert (result.returncode, told) == (0, [])


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
@pytest.mark.parametrize(
    "line",
    [
        "Type=notify",
        "WatchdogSec=30",
        "DynamicUser=yes",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "MemoryDenyWriteExecute=yes",
        "LimitCORE=0",
        "ExecReload=/bin/kill -HUP $MAINPID",
    ],
)
def test_unit_keeps_what_it_promises(unit: Path, line: str) -> None:
    assert line in unit.read_text(encoding="utf-8").splitlines()


def test_units_are_what_the_program_prints() -> None:
    for name, text in units().items():
        assert (DEPLOY / name).read_text(encoding="utf-8") == text, (
            "run: PYTHONPATH=src .venv/bin/python tools/sample_config.py"
        )
    found = {path.name for path in DEPLOY.iterdir() if path.suffix != ".token"}
    assert found == {*units(), *SAMPLES, *BY_HAND}


def sample(file: str) -> dict[str, object]:
    """The sample with each commented setting made real: ``#key = value`` is a setting, ``# text`` is a remark."""
    text = re.sub(r"^#(?=[a-z[])", "", (DEPLOY / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return tomllib.loads(text)


@pytest.mark.parametrize("file", SAMPLES)
def test_sample_changes_nothing_as_it_is(file: str) -> None:
    assert tomllib.loads((DEPLOY / file).read_text(encoding="utf-8")) == {}


@pytest.mark.parametrize("file", SAMPLES)
def test_sample_names_every_setting_and_no_other(file: str) -> None:
    assert set(sample(file)) == {name.replace("_", "-") for name in MODELS[file].model_fields}


def test_sample_shows_the_defaults() -> None:
    values = {key.replace("-", "_"): value for key, value in sample("config.toml").items()}
    assert isinstance(values["rules"], list)
    assert len(parse_rules(values["rules"]).rules) == 2
    assert read_callout(values["callout"]).concurrency == 16
    del values["policy"], values["callout"]  # rules, policy and callout exclude each other
    given = Settings.model_validate(values)
    defaults = Settings()
    shown = {name for name in Settings.model_fields if getattr(given, name) != getattr(defaults, name)}
    assert shown - set(EXAMPLES) == {"rules"}


@pytest.mark.parametrize("file", sorted(CLIENTS))
def test_samples_of_agent_and_connector_show_the_defaults(file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    text = (DEPLOY / file).read_text(encoding="utf-8")
    # A profile, and relay and certificates by file, exclude each other.
    path.write_text(re.sub(r"^#(?=(?!profile)[a-z[])", "", text, flags=re.MULTILINE), encoding="utf-8")
    program, model = file.removesuffix(".toml"), CLIENTS[file]
    given = resolve_client(model, program, {"config": str(path)}, env={}).settings
    assert given.ca_cert == tmp_path / "ca.pem", "paths count from the file"
    for name, info in model.model_fields.items():
        assert (getattr(given, name) == info.default) is (name not in set(examples(file)) - {"profile"}), name


@pytest.mark.parametrize("file", SAMPLES)
def test_sample_is_what_the_settings_say(file: str) -> None:
    expected = render(file)
    assert (DEPLOY / file).read_text(encoding="utf-8") == expected, (
        "run: PYTHONPATH=src .venv/bin/python tools/sample_config.py"
    )


def test_the_page_of_all_settings_is_what_they_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_page(), (
        "run: PYTHONPATH=src .venv/bin/python tools/sample_config.py"
    )
