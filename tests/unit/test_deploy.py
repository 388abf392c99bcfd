"""What deploy/ ships: a systemd unit that gives the service little, and a sample configuration that names every key."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from tools.sample_config import EXAMPLES, MODELS, PAGE, examples, render, render_page

from intermediate_server.config import Settings, resolve_client
from intermediate_server.config.callout import read_callout
from intermediate_server.config.clients import AgentSettings, ClientSettings, ConnectorSettings
from intermediate_server.policy.rules_file import parse_rules

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNIT = DEPLOY / "intermediate-server.service"
SAMPLES = sorted(MODELS)
CLIENTS: dict[str, type[ClientSettings]] = {"agent.toml": AgentSettings, "connector.toml": ConnectorSettings}

# systemd's scale: 0 is sealed off, 10 is unconfined. The sample unit is at 1.3.
HIGHEST_EXPOSURE = 2.0


def unit_lines() -> list[str]:
    return [line for line in UNIT.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def test_unit_exposure_is_low() -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    result = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", str(UNIT)], capture_output=True, text=True, check=False
    )
    if "offline" in result.stderr and result.returncode != 0:
        pytest.skip(f"this systemd-analyze cannot rate a file: {result.stderr.strip()}")
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", result.stdout)
    assert match, result.stdout + result.stderr
    assert float(match[1]) <= HIGHEST_EXPOSURE


@pytest.mark.parametrize(
    "line",
    [
        "DynamicUser=yes",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        "MemoryDenyWriteExecute=yes",
        "LimitCORE=0",
        "ExecReload=/bin/kill -HUP $MAINPID",
    ],
)
def test_unit_keeps_what_it_promises(line: str) -> None:
    assert line in unit_lines()


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
