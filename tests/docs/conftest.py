"""Hosts for the pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.docs.machine import Machine, machines, missing
from tests.e2e.conftest import network
from tests.e2e.netns import Network

__all__ = ["network"]


class Hosts(Protocol):
    """Makes the hosts of a page; some may have programs that are installed in a directory of their own."""

    def __call__(self, names: list[str], programs: Mapping[str, Path] = ...) -> dict[str, Machine]: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need networks."""
    for item in items:
        if "hosts" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.netns)


@pytest.fixture
def hosts(network: Network, tmp_path: Path) -> Iterator[Hosts]:
    """Makes the hosts of one page."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with ExitStack() as stack:

        def make(names: list[str], programs: Mapping[str, Path] = {}) -> dict[str, Machine]:
            made = machines(network, names, tmp_path, programs)
            for machine in made.values():
                stack.callback(machine.end)
            return made

        yield make
