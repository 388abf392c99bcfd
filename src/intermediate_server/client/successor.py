"""Make before break: a second connection that carries everything before the first one is let go.

The relay takes a new connection of the same key for the same agent or connector. From its first registration on,
answers may come on it; what the first one still carries is relayed as before. So the tunnel receives from both, and
sends on the second once the relay has answered about every service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from intermediate_server.client.connection import Connection
from intermediate_server.client.dial import Remote
from intermediate_server.client.tunnel import Tunnel
from intermediate_server.errors import RegistrationError
from intermediate_server.types import Role

SETTLE = 1.0
"""Seconds in which the new path may learn to carry as large packets as the old one, before it has to carry any."""
LINGER = 2.0
"""Seconds for what is under way on the old connection: far below the 10 s that the relay grants to both."""


@dataclass(frozen=True, slots=True)
class Successor:
    """A connection that takes the place of another."""

    connection: Connection
    address: Remote
    answers: dict[str, RegistrationError | None]
    """The relay's answer by service; None for a registration."""
    before: Connection
    """The connection that it replaces."""

    async def let_go(self) -> None:
        """Close the connection before, once what was under way on it has arrived."""
        try:
            await asyncio.sleep(LINGER)
        finally:
            self.before.abandon("replaced")


async def prepare(
    connection: Connection,
    address: Remote,
    before: Connection,
    *,
    role: Role,
    services: Iterable[str],
    tunnel: Tunnel | None,
) -> Successor:
    """Make a new connection ready to take the place of ``before``. Raises ``ConnectionClosed``."""
    await connection.wait_let_in()
    if tunnel is not None:
        tunnel.receive(connection.conn)
    with suppress(TimeoutError):
        async with asyncio.timeout(SETTLE):
            while connection.datagram_limit < before.datagram_limit:
                await connection.wait_datagram_limit(other_than=connection.datagram_limit)
    asked = {service: asyncio.create_task(_register(connection, role, service)) for service in services}
    try:
        return Successor(connection, address, {service: await task for service, task in asked.items()}, before)
    finally:
        for task in asked.values():
            task.cancel()
        await asyncio.gather(*asked.values(), return_exceptions=True)


async def _register(connection: Connection, role: Role, service: str) -> RegistrationError | None:
    try:
        await connection.register(role, service)
    except RegistrationError as error:
        return error
    return None
