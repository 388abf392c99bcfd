"""An edge: where packets enter and leave the engine on a client's side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from intermediate_server.engine import Command
from intermediate_server.errors import EdgeError
from intermediate_server.types import Address


class Edge:
    """Local sockets or a TUN device in the engine. Made by ``ClientEngine.open_edge``.

    It outlives connections: what flows through it waits for the next one.
    """

    def __init__(
        self,
        number: int,
        addresses: Sequence[tuple[str, int]],
        submit: Callable[..., None],
        counters: Callable[[int], dict[str, int]],
    ) -> None:
        self.number = number
        self.addresses = tuple(Address.of(pair) for pair in addresses)
        """Bound local addresses, in the order of the forwards."""
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done with the reason when the edge cannot go on."""
        self._submit = submit
        self._counters = counters

    async def until_failed(self) -> None:
        """Wait for as long as the edge goes on; raises ``EdgeError`` when it cannot."""
        raise EdgeError(await self.failed)

    def attach(self, conn: int) -> None:
        """Send and receive packets on this connection from now on."""
        self._submit(Command.AttachEdge(self.number, conn))

    def set_services(self, services: Sequence[str]) -> None:
        """The services that may be used now; traffic to others is refused at once."""
        self._submit(Command.SetEdgeServices(self.number, [service.encode() for service in services]))

    def submit(self, command: Command) -> None:
        """Change the edge by a command that carries its number."""
        self._submit(command)

    def counters(self) -> dict[str, int]:
        """Packets, bytes, flows and drops so far, by name."""
        return self._counters(self.number)

    def close(self) -> None:
        """Close it and everything that flows through it."""
        self._submit(Command.CloseEdge(self.number))
