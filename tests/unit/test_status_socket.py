"""Where the status of a running agent or connector is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from intermediate_server.client import status


def test_root_finds_the_one_of_the_unit_and_prefers_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "RUN", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    own, of_unit = tmp_path / "intermediate-server/agent.sock", tmp_path / "intermediate-server-agent/agent.sock"
    assert status.socket_to_ask("agent") == own
    for path in (of_unit, own):
        path.parent.mkdir()
        path.touch()
        assert status.socket_to_ask("agent") == path
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert status.socket_to_ask("agent") == Path("/run/user/1/intermediate-server/agent.sock")


def test_a_service_of_systemd_has_its_own_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/intermediate-server-agent:/run/other")
    assert status.default_socket("agent") == Path("/run/intermediate-server-agent/agent.sock")
