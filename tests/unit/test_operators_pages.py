"""docs/runbooks.md and docs/security-model.md: titles that alerts link to, and places in the code that exist."""

from __future__ import annotations

import re
from pathlib import Path

from intermediate_server.config.model import Settings

ROOT = Path(__file__).resolve().parents[2]
RUNBOOKS = (
    "Relay does not start",
    "Relay not ready",
    "Reload refused",
    "Clients cannot connect",
    "Service unreachable",
    "Packets dropped",
    "Packet thread busy",
    "Control plane behind",
    "Handshakes refused",
    "Joins refused",
    "Certificate near its end",
    "Renewals failing",
    "Identity database damaged",
    "Disk full",
    "Watchdog restarts",
    "Stolen device",
    "Drain for maintenance",
)
"""Alerts outside of this tree link to these: a title is added, and never changed."""


def test_the_titles_of_runbooks_stay() -> None:
    page = (ROOT / "docs/runbooks.md").read_text()
    assert tuple(re.findall(r"^## (.+)$", page, re.MULTILINE)) == RUNBOOKS


def test_the_security_model_names_code_and_settings_that_exist() -> None:
    page = (ROOT / "docs/security-model.md").read_text()
    files = re.findall(r"`((?:crates|src)/[^`]+)`", page)
    assert len(files) > 15
    assert [name for name in files if not (ROOT / name).is_file()] == []
    limits = page.partition("## What each limit protects")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \|", limits, re.MULTILINE)
    named = {word for row in rows for word in re.findall(r"`([a-z-]+)`", row)} - {"limits"}
    assert len(named) > 12
    assert named <= {name.replace("_", "-") for name in Settings.model_fields}
