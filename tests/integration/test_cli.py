"""The real program: its flags in both spellings, its exit statuses and what it says."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from intermediate_server.pki import ensure_development
from tests.integration.commands import PATIENCE, run, serving


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """A certificate and its key."""
    made = ensure_development(tmp_path / "elsewhere", names=())
    return str(made.cert), str(made.key)


def shown(tmp_path: Path, *arguments: str, env: dict[str, str] | None = None) -> dict[str, str]:
    """The settings the program says it would serve with."""
    done = run(tmp_path, "check-config", "--show", *arguments, env=env)
    assert done.returncode == 0, done.stderr
    pairs = [line.split("  # ")[0].split(" = ") for line in done.stdout.splitlines() if " = " in line]
    return {key: value.strip('"') for key, value in pairs}


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(tmp_path: Path, flag: str) -> None:
    done = run(tmp_path, flag)
    assert done.returncode == 0
    name, _, number = done.stdout.strip().partition(" ")
    assert name == "intermediate-server"
    assert number.replace(".", "").isdigit()


def test_help_names_every_command_and_every_flag(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    for command in ("serve", "check-config", "pki"):
        assert command in done.stdout
    text = run(tmp_path, "serve", "--help").stdout
    for flag in ("--port", "--bind", "--idle-timeout", "--no-verify-peer", "--config"):
        assert flag in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--port", "70000"], "--port: 70000 is out of range, 0 to 65535"),
        (["serve", "--idle-timeout", "soon"], "--idle-timeout: 'soon' is not a duration"),
        (["serve", "--cert", "missing.pem", "--key", "missing.key"], "not found: missing.pem"),
        (["serve", "--cert", "missing.pem"], "cert is set without key"),
        (["serve", "--ca-cert", "missing.pem"], "not found: missing.pem"),
        (["serve", "--config", "missing.toml"], "missing.toml: not found"),
        (["serve", "--require-client-cert", "--no-verify-peer"], "contradict each other"),
        (["serve", "1", "2", "3", "4", "5", "6"], "6 arguments without a flag"),
        (["serve", "--no-such-flag"], "--no-such-flag"),
        (["serve", "--state-dir", "/dev/null"], "state directory /dev/null cannot be made"),
        (["no-such-command"], "no-such-command"),
        (["check-config", "missing.toml"], "missing.toml: not found"),
        (["check-config", "a.toml", "--config", "b.toml"], "name the configuration file once"),
        (["pki", "issue", "agent", "../etc", "--service", "web"], "cannot be a name"),
        (["pki", "list"], "run: intermediate-server pki init"),
        (["pki", "show", "missing.pem"], "not found: missing.pem"),
    ],
)
def test_mistakes_start_nothing_and_end_with_status_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stdout == ""
    assert "panic" not in done.stderr.lower()
    assert not (tmp_path / "state" / "server.key").exists()


FLAGS: Sequence[tuple[list[str], str, str]] = [
    (["--port", "5001"], "port", "5001"),
    (["--bind", "127.0.0.1"], "bind", "127.0.0.1"),
    (["--bind", "::1", "--bind", "127.0.0.1"], "bind", "::1,127.0.0.1"),
    (["--bind", "[::1]"], "bind", "::1"),
    (["--external-ip", "203.0.113.9"], "external-ip", "203.0.113.9"),
    (["--no-verify-peer"], "client-auth", "off"),
    (["--require-client-cert"], "client-auth", "required"),
    (["--client-auth", "optional"], "client-auth", "optional"),
    (["--disable-retry"], "disable-retry", "true"),
    (["--metrics-port", "0"], "metrics-port", "0"),
]


@pytest.mark.parametrize(("flags", "key", "value"), FLAGS, ids=[" ".join(flags) for flags, _, _ in FLAGS])
def test_flags_of_the_older_server(tmp_path: Path, flags: list[str], key: str, value: str) -> None:
    assert shown(tmp_path, *flags)[key] == value


def test_file_flags_of_the_older_server(tmp_path: Path, pair: tuple[str, str]) -> None:
    cert, key = pair
    config = tmp_path / "old.json"
    config.write_text(json.dumps({"_comment": "x", "port": 5002, "cert_path": cert, "key_path": key}))
    found = shown(tmp_path, "--config", str(config), "--ca-cert", cert)
    assert (found["port"], found["cert"], found["key"], found["ca-cert"]) == ("5002", cert, key, cert)


def test_check_config_says_what_is_read_from_where(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('idle-timeout = "45s"\nmax-connections = 77\n')
    done = run(tmp_path, "check-config", str(config), env={"ZTNA_MAX_CONNECTIONS": "88"})
    assert (done.returncode, done.stdout.strip()) == (0, f"{config}: ok")
    lines = run(tmp_path, "check-config", str(config), "--show", env={"ZTNA_MAX_CONNECTIONS": "88"}).stdout
    assert 'idle-timeout = "45s"  # ' in lines
    assert "max-connections = 88  # ZTNA_MAX_CONNECTIONS" in lines
    again = tmp_path / "again.toml"
    again.write_text(lines)
    assert run(tmp_path, "check-config", str(again)).returncode == 0, "what it shows is a configuration file"
    config.write_text("idle-timout = 1\n")
    wrong = run(tmp_path, "check-config", str(config))
    assert wrong.returncode == 2
    assert "did you mean idle-timeout?" in wrong.stderr


def test_port_cert_and_key_do_without_bind(tmp_path: Path, pair: tuple[str, str]) -> None:
    """Fault 9 of the older server: it took the certificate for the address to bind."""
    cert, key = pair
    flags = ["--port", "0", "--cert", cert, "--key", key, "--metrics-port", "0"]
    with serving(tmp_path, *flags) as (process, lines):
        assert any(cert in line for line in lines)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_positional_arguments_of_the_older_server(tmp_path: Path, pair: tuple[str, str]) -> None:
    cert, key = pair
    with serving(tmp_path, "0", cert, key, "127.0.0.1", "203.0.113.9", "--metrics-port", "0") as (process, lines):
        log = "".join(lines)
        assert "Server listening on 127.0.0.1:" in log
        assert cert in log
        assert "203.0.113.9" in log
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def test_a_file_of_the_older_server_that_is_not_named(tmp_path: Path) -> None:
    (tmp_path / "intermediate.json").write_text('{"port": 70001, "verify_peer": true}')
    for flags, told in (([], True), (["--config", "config.toml"], False)):
        (tmp_path / "config.toml").touch()
        with serving(tmp_path, "0", *flags, "--metrics-port", "0", "--bind", "127.0.0.1") as (process, lines):
            hints = [line for line in lines if "intermediate.json is not read; name it with --config" in line]
            assert bool(hints) is told
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0


def test_a_file_that_is_found_and_a_variable_that_is_no_setting_are_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "intermediate-server.toml").write_text("max-connections = 77\n")
    flags = ["0", "--metrics-port", "0", "--bind", "127.0.0.1"]
    env = {"ZTNA_METRICS_PROT": "1", "ZTNA_PORT": "udp://10.0.0.1:4433"}
    with serving(tmp_path, *flags, env=env) as (process, lines):
        log = "".join(lines)
        assert f"Configuration read file={tmp_path}/intermediate-server.toml" in log
        assert "ZTNA_METRICS_PROT is no setting and not read; did you mean ZTNA_METRICS_PORT?" in log
        assert "ZTNA_PORT" not in log
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    checked = run(tmp_path, "check-config", env=env)
    assert (checked.returncode, checked.stdout) == (0, "intermediate-server.toml: ok\n")
    assert checked.stderr.startswith("warning: ZTNA_METRICS_PROT is no setting")


def test_a_flag_wins_over_a_positional_argument_and_that_over_file_and_environment(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("port = 70001\n")
    done = run(tmp_path, "serve", "70002", "--port", "70003", "--config", "config.toml", env={"ZTNA_PORT": "70004"})
    assert "70003" in done.stderr
    done = run(tmp_path, "serve", "70002", "--config", "config.toml", env={"ZTNA_PORT": "70004"})
    assert "70002" in done.stderr
    done = run(tmp_path, "serve", "--config", "config.toml", env={"ZTNA_PORT": "70004"})
    assert "ZTNA_PORT: 70004" in done.stderr
    done = run(tmp_path, "serve", "--config", "config.toml")
    assert "config.toml: port: 70001" in done.stderr


def test_certificates_from_the_command_line(tmp_path: Path) -> None:
    assert run(tmp_path, "pki", "init").returncode == 0
    state = tmp_path / "state"
    issued = run(tmp_path, "pki", "issue", "agent", "laptop", "--service", "web", "--service", "db")
    assert issued.returncode == 0
    assert str(state / "issued" / "laptop.key") in issued.stdout
    assert "PRIVATE KEY" not in issued.stdout + issued.stderr
    shown = run(tmp_path, "pki", "show", str(state / "issued" / "laptop.pem")).stdout
    for name in ("DNS:agent.web.ztna", "DNS:agent.db.ztna", "CN=laptop"):
        assert name in shown
    again = run(tmp_path, "pki", "issue", "agent", "laptop", "--service", "web")
    assert again.returncode == 2
    assert "pki renew laptop" in again.stderr
    assert run(tmp_path, "pki", "renew", "laptop").returncode == 0
    assert run(tmp_path, "pki", "revoke", "laptop").stdout.count("revoked laptop") == 2
    listed = run(tmp_path, "pki", "list").stdout
    assert listed.count("revoked 2") == 2
    gone = run(tmp_path, "pki", "renew", "laptop")
    assert gone.returncode == 2
    assert "was revoked" in gone.stderr
