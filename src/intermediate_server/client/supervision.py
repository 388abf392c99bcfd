"""An agent or a connector under systemd: what its service manager is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from intermediate_server.client.engine import ClientEngine
from intermediate_server.client.state import State
from intermediate_server.notify import ServiceManager


class Supervised(Protocol):
    """The part of an agent or a connector that is told of."""

    @property
    def state(self) -> State: ...
    async def wait_until(self, predicate: Callable[[State], bool]) -> None: ...


async def report_to(manager: ServiceManager, client: Supervised, engine: ClientEngine) -> None:
    """Tell that the client is ready, how it is at each change, and that it lives; until cancelled.

    It is ready once its sockets are open: a relay that is away is no failure of the service, which tries on.
    """

    said = ""

    def changed(state: State) -> bool:
        return describe(state) != said

    async def follow() -> None:
        nonlocal said
        manager.ready(describe(client.state))
        while True:
            said = describe(client.state)
            manager.status(said)
            await client.wait_until(changed)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        tasks.create_task(manager.keep_alive(lambda: engine.turning))


def describe(state: State) -> str:
    """One line about the state of a client."""
    if state.connection is None:
        return f"not connected: {state.last_error}" if state.last_error else "connecting"
    silent = "; the relay is silent" if state.silent else ""
    return (
        f"connected to {state.connection.remote}; {len(state.registered)} of {len(state.services)} services registered"
        f"{silent}"
    )
