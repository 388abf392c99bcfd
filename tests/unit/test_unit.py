"""The ``unit`` command: units for the program as pip, pipx or uv has installed it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from intermediate_server.cli import main
from intermediate_server.cli.unit import KINDS, Place, render
from intermediate_server.errors import ConfigError

PIPX = Path("/home/u/.local/share/pipx/venvs/intermediate-server")
UV = Path("/root/.local/share/uv")


@pytest.mark.parametrize("kind", KINDS)
def test_it_prints_units_for_this_program(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unit", kind]) == 0
    printed = capsys.readouterr().out
    assert printed == render(kind, Place.of_this_program())
    program = Place.of_this_program().program
    assert Path(program).is_file()
    assert f"#   {program} unit {kind} > /etc/systemd/system/" in printed
    if kind in ("server", "agent", "connector"):
        assert f"\nExecStart={program} {'serve' if kind == 'server' else kind}" in printed


@pytest.mark.parametrize("kind", ["agent", "connector"])
def test_a_client_that_joins_at_its_first_start(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unit", kind, "--join"]) == 0
    printed = capsys.readouterr().out
    program = Place.of_this_program().program
    assert f"ExecStart={program} {kind} --join auto --config /etc/intermediate-server/{kind}.toml\n" in printed
    token = f"LoadCredential=join-token:/etc/intermediate-server/{kind}.token\nSetCredential=join-token:\\x20\n"
    assert token in printed
    assert f"unit {kind} --join > /etc/systemd/system/" in printed


@pytest.mark.parametrize("kind", ["agent", "connector"])
def test_a_client_that_finds_no_relay_to_join_is_started_until_there_is_one(kind: str) -> None:
    """A join fails after a second where nothing listens, so any limit of starts is soon reached."""
    text = render(kind, Place("p"), join=True)
    assert "\nStartLimitIntervalSec=0\n" in text.partition("[Service]")[0]
    assert "StartLimitBurst" not in text
    assert "\nRestart=on-failure\nRestartSec=5\n" in text


def test_only_clients_join(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unit", "server", "--join"]) == 2
    assert "for an agent or a connector" in capsys.readouterr().err


def test_a_program_for_the_whole_host_hides_all_homes() -> None:
    text = render("agent", Place("/opt/intermediate-server/bin/intermediate-server"))
    assert "ProtectHome=yes\n" in text
    assert "BindReadOnlyPaths" not in text


@pytest.mark.parametrize("bound", [(PIPX,), (UV / "tools" / "intermediate-server", UV / "python" / "cpython-3.12")])
def test_of_a_home_directory_a_service_sees_the_program_alone(bound: tuple[Path, ...]) -> None:
    text = render("server", Place(f"{bound[0]}/bin/intermediate-server", bound))
    assert f"ProtectHome=tmpfs\nBindReadOnlyPaths={' '.join(map(str, bound))}\n" in text
    assert f"ExecStart={bound[0]}/bin/intermediate-server serve\n" in text


def test_what_is_no_unit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unit", "laptop"]) == 2
    assert "there are server, agent, connector, socket, tun" in capsys.readouterr().err


@pytest.mark.parametrize("directory", ["my env", "50%", "a:b", "$HOME", "été; x"])
def test_systemd_finds_a_program_whatever_its_directory_is_called(directory: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / directory / "intermediate-server"
    program.parent.mkdir()
    shutil.copy(shutil.which("true") or "/bin/true", program)
    text = render("server", Place(str(program), (program.parent,)))
    unit = tmp_path / "intermediate-server.service"
    unit.write_text(text, encoding="utf-8")
    done = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if unit.name in line]) == (0, [])
    command = shlex.split(text.splitlines()[1].removeprefix("#"))
    assert command[:3] == [str(program), "unit", "server"], "the line to repeat is one for a shell"


@pytest.mark.parametrize("path", ["/opt/a'b/p", '/opt/a"b/p', "/opt/a\\b/p", "/opt/a\nb/p"])
def test_what_systemd_refuses_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="install it into another environment"):
        render("server", Place(path))


def test_a_program_in_tmp_is_warned_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Place, "of_this_program", lambda: Place("/tmp/venv"))
    assert main(["unit", "server"]) == 0
    printed = capsys.readouterr()
    assert "warning: the service does not see /tmp/venv" in printed.err
    assert "ExecStart=/tmp/venv serve\n" in printed.out


def test_the_socket_is_one_of_ipv4_where_the_kernel_has_no_ipv6(tmp_path: Path) -> None:
    """systemd looks for IPv6 in /proc, and takes a port alone for one of what it finds; an IPv6 address fails."""
    listen = next(line for line in render("socket", Place("p")).splitlines() if line.startswith("ListenDatagram="))
    activate = f"systemd-socket-activate --datagram --listen={listen.partition('=')[2]} true"
    if shutil.which("systemd-socket-activate") is None:
        pytest.skip("systemd-socket-activate is not installed")
    within = ["unshare", "--user", "--map-root-user", "--mount", "--net", "sh", "-c"]
    with subprocess.Popen(
        [*within, f"mount -t tmpfs none /proc && exec {activate}"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = process.stderr.readline().strip()
        process.kill()
    if "unshare" in said:
        pytest.skip(said)
    assert said.startswith("Listening on 0.0.0.0:4433")
