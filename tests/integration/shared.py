"""Servers that the tests of a module only read: each runs once for it, apart from the loops of the tests."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import override

from tests.integration.server import Server

T = TypeVar("T")


class SharedServer(Server):
    """A server whose log is read by another loop than that of the test."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__(process)
        self._home = asyncio.get_running_loop()

    @override
    async def wait_log(self, text: str, *, count: int = 1, **fields: object) -> dict[str, Any]:
        waiting = super().wait_log(text, count=count, **fields)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(waiting, self._home))


class SharedServers:
    """Servers by their flags; a module asks for the same one as often as it likes."""

    def __init__(self, directory: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._directory = directory
        self._loop = loop
        self._started: dict[tuple[str, ...], SharedServer] = {}
        self._numbers = itertools.count()

    def __call__(self, *flags: str, bind: str = "127.0.0.1") -> SharedServer:
        key = (bind, *flags)
        if key not in self._started:
            directory = self._directory / f"state-{len(self._started)}"
            self._started[key] = self._wait(SharedServer.begin(directory, *flags, bind=bind))
        return self._started[key]

    def new_service(self) -> bytes:
        """The name of a service that no other test has: clients that were killed stay for a while."""
        return b"service-%d" % next(self._numbers)

    def end(self) -> None:
        for server in self._started.values():
            self._wait(server.terminate())

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


@contextmanager
def shared_servers(directory: Path) -> Iterator[SharedServers]:
    """Starts servers until the block ends, which ends them."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    servers = SharedServers(directory, loop)
    try:
        yield servers
    finally:
        servers.end()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
