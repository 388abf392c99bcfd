"""The ``unit`` command: units for the program as pip, pipx or uv has installed it."""

from __future__ import annotations

from pathlib import Path

import pytest

from intermediate_server.cli import main
from intermediate_server.cli.unit import KINDS, Place, render

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
