"""The completions as a shell uses them: bash itself reads the script and completes lines by the installed program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from intermediate_server.cli import main
from tests.integration.commands import PATIENCE

PROGRAM = "intermediate-server"
# Bash completes by what the script has registered with `complete` for the program.
ASK = f"""\
source /dev/stdin
[[ $(complete -p {PROGRAM}) =~ \\ -F\\ ([^ ]+) ]] && function=${{BASH_REMATCH[1]}}
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
compopt() {{ echo "compopt $*"; }}
"$function" "$1"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for PATH with the program in it."""
    place = tmp_path_factory.mktemp("bin")
    script = place / PROGRAM
    script.write_text(f"#!{sys.executable}\nfrom intermediate_server.cli import main\nraise SystemExit(main())\n")
    script.chmod(0o755)
    return place


def complete(directory: Path, script: str, *words: str) -> list[str]:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    result = subprocess.run(
        [bash, "--norc", "-c", ASK, "bash", *words],
        input=script,
        env={**os.environ, "PATH": f"{directory}:{os.environ['PATH']}", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert result.stderr == ""
    return result.stdout.split()


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", "bash"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["to"], ["token"]),
        (["token", "cr"], ["create"]),
        (["token", "no-such-command"], []),
        (["unit", "a"], ["agent"]),
        (["serve", "--client-auth", ""], ["required", "optional", "off"]),
        (["serve", "--metrics-b"], ["--metrics-bind"]),
        (["agent", "status", "--status-s"], ["--status-socket"]),
        (["agent", "--config", "/etc/"], ["compopt", "-o", "default"]),
    ],
    ids=" ".join,
)
def test_bash_completes(directory: Path, script: str, line: list[str], expected: list[str]) -> None:
    assert complete(directory, script, PROGRAM, *line) == expected


@pytest.mark.parametrize(("shell", "said"), [("zsh", f"#compdef {PROGRAM}\n"), ("fish", f"--command {PROGRAM} ")])
def test_the_scripts_of_other_shells(shell: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert said in printed
    assert f"_INTERMEDIATE_SERVER_COMPLETE={shell}_complete" in printed


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "csh"]) == 2
    assert "there are bash, zsh, fish" in capsys.readouterr().err
