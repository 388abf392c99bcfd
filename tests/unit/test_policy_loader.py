"""Finding the policy that the configuration names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.registering import wanted

from intermediate_server.errors import ConfigError
from intermediate_server.policy import (
    Allow,
    load_policy,
)

SOURCE = """
from intermediate_server.policy import Allow, Policy

class Open(Policy):
    async def authorize(self, registration):
        return Allow("open")

class Needy(Open):
    def __init__(self, argument):
        pass

class Idle(Open):
    concurrency = 0

class Unfinished(Policy):
    pass

class Holder:
    inner = Open()

instance = Open()

def factory():
    return Open()

def nothing():
    return None

async def late():
    return Open()

def leaves():
    raise SystemExit("hunter2")

def interrupts():
    raise KeyboardInterrupt("hunter2")

number = 7
"""


class TestLoader:
    @pytest.fixture(autouse=True)
    def modules(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        (tmp_path / "own_policies.py").write_text(SOURCE)
        (tmp_path / "own_broken.py").write_text("raise RuntimeError('hunter2')\n")
        (tmp_path / "own_odd.py").write_text("def policy(:\n")
        (tmp_path / "own_needs.py").write_text("import own_missing_dependency\n")
        monkeypatch.syspath_prepend(tmp_path)
        yield
        for name in ("own_policies", "own_broken", "own_needs", "own_odd"):
            sys.modules.pop(name, None)

    @pytest.mark.parametrize("attr", ["Open", "instance", "factory", "Holder.inner"])
    async def test_a_class_an_instance_and_a_factory_are_policies(self, attr: str) -> None:
        assert await load_policy(f"own_policies:{attr}").authorize(wanted()) == Allow("open")

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("own_policies", "module:attr"),
            ("own_policies:", "module:attr"),
            (":Open", "module:attr"),
            ("", "module:attr"),
            ("own_absent:Open", "no module 'own_absent'"),
            ("own_absent.inner:Open", "no module 'own_absent'"),
            (".own_policies:Open", "raised TypeError"),
            ("own_broken:Open", "importing 'own_broken' raised RuntimeError at own_broken.py:1"),
            ("own_odd:policy", "importing 'own_odd' raised SyntaxError at own_odd.py:1"),
            ("own_needs:Open", "needs the module 'own_missing_dependency'"),
            ("own_policies:Absent", "has no 'Absent'"),
            ("own_policies:Open.absent", "has no 'Open.absent'"),
            ("own_policies:Needy", "calling 'Needy' raised TypeError"),
            ("own_policies:Unfinished", "calling 'Unfinished' raised TypeError"),
            ("own_policies:nothing", "NoneType"),
            ("own_policies:late", "is async"),
            ("own_policies:leaves", "SystemExit at own_policies.py:"),
            ("own_policies:interrupts", "KeyboardInterrupt at own_policies.py:"),
            ("own_policies:number", "int"),
            ("own_policies:Idle", "concurrency must be a whole number of at least 1"),
        ],
    )
    def test_everything_else_is_a_clear_error(self, name: str, text: str) -> None:
        with pytest.raises(ConfigError) as caught:
            load_policy(name)
        assert text in str(caught.value)
        assert "hunter2" not in str(caught.value), "what is raised may quote a password"
