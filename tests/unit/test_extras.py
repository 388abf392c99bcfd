"""The way to an extra that is missing."""

from __future__ import annotations

import importlib
import sys

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
    with pytest.raises(MissingExtra) as caught, needs(SERVER):
        importlib.import_module("no_such_module")
    assert str(caught.value) == f"no_such_module is not installed; run: {told} 'intermediate-server[server]'"


def test_a_module_of_ours_that_is_missing_is_a_defect() -> None:
    with pytest.raises(ModuleNotFoundError), needs(SERVER):
        importlib.import_module("intermediate_server.no_such_module")
