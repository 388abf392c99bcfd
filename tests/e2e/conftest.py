"""Fixtures of the tests that build networks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path

import pytest

from tests.e2e import netns
from tests.e2e.field import PYTHON_PEER, Field
from tests.e2e.homes import Internet
from tests.e2e.netns import Network
from tests.integration.peers import quiche_program

__all__ = ["quiche_program"]


@cache
def _why_not() -> str | None:
    return netns.missing()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this directory."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.netns)


@pytest.fixture
def network() -> Iterator[Network]:
    """An empty network, removed at the end with whatever runs in it."""
    reason = _why_not()
    if reason is not None:
        pytest.skip(reason)
    netns.remove_abandoned()
    made = Network()
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture
async def running(network: Network) -> AsyncIterator[AsyncExitStack]:
    """What is entered ends before the network does."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def field(network: Network, running: AsyncExitStack, tmp_path: Path) -> Field:
    """The usual network, no program running in it yet."""
    return Field(network, running, tmp_path)


@pytest.fixture
def internet(network: Network, running: AsyncExitStack, tmp_path: Path) -> Internet:
    """A network with nobody in it yet, to which hosts come through NATs of their own."""
    return Internet(network, running, tmp_path)


@pytest.fixture(params=["python", "quiche"])
def program(request: pytest.FixtureRequest) -> Path | tuple[str, ...]:
    """The peers a network is tried with: our client, and the stack of the clients in the field."""
    if request.param == "python":
        return PYTHON_PEER
    found: Path = request.getfixturevalue("quiche_program")
    return found
