"""The tables of reasons on the pages: close codes, ends of introductions and refusals of joins."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from intermediate_server.signaling import Reason
from intermediate_server.signaling.records import SENTENCES
from intermediate_server.wire import close_codes

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "intermediate_server"
CAUSE_OF = {"RequestError": 0, "Refusal": 0, "_refused": 1, "failed": 1}
"""Which argument of these is the cause of a refusal."""


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").partition(f"{heading}\n")[2].partition("\n#")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def refusals() -> Iterator[str]:
    """Every cause that the code refuses a join, a renewal or a leave for."""
    for path in (*(SOURCE / "join").glob("*.py"), SOURCE / "pki" / "joins.py", SOURCE / "server" / "joining.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CAUSE_OF:
                cause = node.args[CAUSE_OF[node.func.id]]
                if isinstance(cause, ast.Constant):
                    yield str(cause.value)


@pytest.mark.parametrize(("page", "heading"), [("protocol.md", "### 1.4 Close codes"), ("access.md", "## Close codes")])
def test_close_codes(page: str, heading: str) -> None:
    codes = {value for name, value in vars(close_codes).items() if name.isupper()}
    assert {int(row[0]) for row in table(page, heading)} == codes


def test_ends_of_introductions() -> None:
    assert table("direct.md", "## What there is to see") == [[f"`{reason}`", SENTENCES[reason]] for reason in Reason]


def test_refusals_of_joins() -> None:
    found = set(refusals())
    assert {"used", "csr", "weak-key", "early", "busy"} <= found
    listed = {cause for row in table("protocol.md", "### 5.4 Refusals") for cause in re.findall(r"`([\w-]+)`", row[0])}
    assert listed == found
