"""A tunnel: the place where packets enter and leave the engine on a client's side."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from intermediate_server.engine import Command, Event
from intermediate_server.errors import TunnelError
from intermediate_server.types import Address

ASKING = 2.0
"""Seconds to wait for the engine's answer about a service's connector; the engine gives up after half of that."""
MAX_NOTICES = 1024


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice about a part of a service; see ``Event.TunnelNotice``."""

    subject: str
    service: str
    address: Address | None
    error: str | None


class Tunnel:
    """Local sockets or a TUN device in the engine. Made by ``ClientEngine.open_tunnel``.

    It outlives connections: its flows wait for the next one.
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
        """Done with the reason when the tunnel cannot go on."""
        self.connectors: dict[str, bool] = {}
        """Whether a connector answers, by usable service of an agent, once that is known."""
        self.backends: dict[tuple[str, Address], str | None] = {}
        """The last fault of each address of a connector's services; None for a good one."""
        self._services: set[str] = set()
        self._notices: deque[Notice] = deque(maxlen=MAX_NOTICES)
        self._noticed = asyncio.Event()
        self._submit = submit
        self._counters = counters

    async def until_failed(self) -> None:
        """Wait until the tunnel fails; raises ``TunnelError`` then."""
        raise TunnelError(await self.failed)

    def attach(self, conn: int) -> None:
        """Send and receive packets on this connection from now on: a new beginning, after an interruption."""
        self.connectors.clear()
        self._submit(Command.AttachTunnel(self.number, conn))

    def receive(self, conn: int) -> None:
        """Take packets from this connection too, beside the one in use; :meth:`take_over` may follow."""
        self._submit(Command.AttachTunnel(self.number, conn, sends=False))

    def take_over(self, conn: int) -> None:
        """Send on this connection from now on without a loss; what still comes on the other one is taken."""
        self._submit(Command.AttachTunnel(self.number, conn))

    def set_services(self, services: Sequence[str]) -> None:
        """Set the usable services; traffic to others is refused at once.

        New ones are asked for their connectors: see :meth:`wait_connector`.
        """
        before, self._services = self._services, set(services)
        for service in before ^ self._services:
            self.connectors.pop(service, None)
        self._submit(Command.SetTunnelServices(self.number, [service.encode() for service in services]))

    async def wait_connector(self, service: str) -> bool:
        """Whether a connector answers for a usable service; True without an answer in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ASKING):
                while service not in self.connectors:
                    await self._noticed.wait()
        return self.connectors.get(service, True)

    def keep_backends(self, known: set[tuple[str, Address]]) -> None:
        """Forget the notices about other backends than these."""
        for gone in set(self.backends) - known:
            del self.backends[gone]

    def notice(self, event: Event.TunnelNotice) -> None:
        """Take one event; called by the engine's owner."""
        address = None if event.address is None else Address.of(event.address)
        notice = Notice(event.subject, event.service.decode(errors="replace"), address, event.error)
        if notice.subject == "connector":
            self.connectors[notice.service] = notice.error is None
        elif notice.subject == "backend" and address is not None:
            self.backends[notice.service, address] = notice.error
        self._notices.append(notice)
        self._noticed.set()
        self._noticed = asyncio.Event()

    async def notices(self) -> AsyncIterator[Notice]:
        """Every notice, oldest first; for one reader."""
        while True:
            while self._notices:
                yield self._notices.popleft()
            await self._noticed.wait()

    def submit(self, command: Command) -> None:
        """Change the tunnel by a command with its number."""
        self._submit(command)

    def counters(self) -> dict[str, int]:
        """Packets, bytes, flows and drops so far, by name."""
        return self._counters(self.number)

    def close(self) -> None:
        """Close it and all its flows."""
        self._submit(Command.CloseTunnel(self.number))
