"""The manual page, and exit codes."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tools.click_tree import commands
from tools.manual import render, text

from intermediate_server import cli
from intermediate_server.cli import main

ROOT = Path(__file__).resolve().parents[2]


def shown(tmp_path: Path) -> str:
    """The page as a reader sees it, on one line."""
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed")
    page = tmp_path / "page.1"
    page.write_text(render(), encoding="utf-8")
    command = [groff, "-man", "-Tascii", "-P-cbou", "-ww", str(page)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr == "", "no warning"
    return " ".join(result.stdout.split())


def test_the_page_shows_each_command_with_each_option_and_argument(tmp_path: Path) -> None:
    page = shown(tmp_path)
    found = list(commands())
    assert {"agent status", "pki issue", "serve"} <= {each.path.partition(" ")[2] for each in found}
    for command in found:
        assert f"{command.path} {command.synopsis}" in page
        for term, meaning in (*command.arguments, *(row for rows in command.options.values() for row in rows)):
            assert f"{term} {' '.join(meaning.split())}".strip() in page, command.path


def test_lines_that_help_keeps_are_lines_of_the_page() -> None:
    lines = render().splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith("bash: "))
    assert [lines[at - 1], lines[at + 1].split()[0], lines[at + 3]] == [".nf", "zsh:", ".fi"]
    assert all(line.isprintable() for line in lines)


def test_the_page_names_each_exit_code(tmp_path: Path) -> None:
    statuses = shown(tmp_path).partition("EXIT STATUS")[2].partition("FILES")[0]
    assert re.findall(r"\b(0|1|2|130) [A-Z]", statuses) == [str(code) for code in cli.EXIT_CODES]


def test_roff_takes_no_text_for_an_order() -> None:
    assert text(".TH") == "\\&.TH"
    assert text("'br") == "\\(aqbr"
    assert text("a\\nb --c") == "a\\enb \\-\\-c"


def test_the_tool_writes_the_page(tmp_path: Path) -> None:
    page = tmp_path / "intermediate-server.1"
    subprocess.run(
        [sys.executable, "-m", "tools.manual", str(page)], cwd=ROOT, env={**os.environ, "PYTHONPATH": "src"}, check=True
    )
    assert page.read_text(encoding="utf-8") == render()


def test_ctrl_c_has_the_exit_code_that_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("intermediate_server.client.service_address.service_addresses", interrupted)
    assert main(["address", "web"]) == cli.INTERRUPTED
