"""The way to an extra that is missing."""

from __future__ import annotations

import importlib
import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from intermediate_server.errors import SERVER, MissingExtra, needs


@pytest.mark.parametrize(
    ("prefix", "told"),
    [
        ("/opt/intermediate-server", f"{sys.executable} -m pip install"),
        ("/home/u/.local/share/pipx/venvs/intermediate-server", "pipx install --force"),
        ("/home/u/.local/share/uv/tools/intermediate-server", "uv tool install"),
    ],
)
def test_it_is_that_of_the_installation(prefix: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", prefix)
    monkeypatch.setattr(metadata, "distribution", lambda _: Installed(None))
    assert error() == f"no_such_module is not installed; run: {told} 'intermediate-server[server]'"


class Installed:
    """The record of an installation from ``url``; None for one by its name."""

    def __init__(self, url: str | None) -> None:
        self._url = url

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self._url is None else json.dumps({"url": self._url, "archive_info": {}})


def error() -> str:
    with pytest.raises(MissingExtra) as caught, needs(SERVER):
        importlib.import_module("no_such_module")
    return str(caught.value)


def test_a_file_that_was_installed_is_named_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On an index the name may be somebody else's."""
    wheel = tmp_path / "a directory" / "intermediate_server-0.1.0-cp311-abi3-linux_x86_64.whl"
    monkeypatch.setattr(metadata, "distribution", lambda _: Installed(wheel.as_uri()))
    assert error().endswith(f"-m pip install '{wheel.name}[server]'")
    wheel.parent.mkdir()
    wheel.touch()
    assert error().endswith(f"-m pip install '{wheel}[server]'")
    monkeypatch.setattr(metadata, "distribution", lambda _: Installed("https://example.com/x.whl"))
    assert error().endswith("-m pip install 'intermediate-server[server]'")


def test_a_module_of_ours_that_is_missing_is_a_defect() -> None:
    with pytest.raises(ModuleNotFoundError), needs(SERVER):
        importlib.import_module("intermediate_server.no_such_module")
