"""A peer's place at the relay: connected, registered, and back again after whatever interrupts it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from intermediate_server.client.connection import Connection
from intermediate_server.client.edge import Edge
from intermediate_server.client.engine import ClientEngine
from intermediate_server.client.relay import Relay, dial
from intermediate_server.errors import ConnectionClosed, RegistrationError
from intermediate_server.types import Address, Role

LOOK = 1.0
"""Seconds between two looks at whether the relay still answers."""
SILENT_LOOKS = 4
"""Looks without a packet from the relay after which another connection is tried beside the present one."""
REPEAT = 30.0
"""Seconds after which services are registered again: one that was refused or withdrawn may be granted now."""
SAME_FAILURE_LOGGED = 30.0
"""Seconds between two log lines about the same failure."""

_log = structlog.get_logger()


class Standing(enum.Enum):
    """What the relay said about a service."""

    WAITING = "waiting"
    REGISTERED = "registered"
    REFUSED = "refused"


@dataclass(slots=True)
class State:
    """What is known of the uplink now."""

    connection: Connection | None = None
    """None while there is none."""
    connects: int = 0
    """Connections made so far."""
    services: dict[str, Standing] = field(default_factory=dict)
    last_error: str = ""
    """Why the last try or registration failed; empty once all is well."""

    @property
    def registered(self) -> list[str]:
        """The services acknowledged on the present connection."""
        return [name for name, standing in self.services.items() if standing is Standing.REGISTERED]


class Uplink:
    """Keeps one connection to a relay, with its registrations and the edge that uses it."""

    def __init__(
        self,
        engine: ClientEngine,
        relay: Relay,
        *,
        role: Role,
        services: Sequence[str],
        edge: Edge | None = None,
        on_limit: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """``on_limit`` is told the largest DATAGRAM of the connection, in bytes, and each change of it."""
        self.state = State(services=dict.fromkeys(services, Standing.WAITING))
        self._engine = engine
        self._relay = relay
        self._role = role
        self._edge = edge
        self._on_limit = on_limit
        self._changed = asyncio.Event()
        self._failure: tuple[str, float] = ("", 0.0)

    async def wait_until(self, predicate: Callable[[State], bool]) -> None:
        """Wait until the state is as wanted."""
        while not predicate(self.state):
            await self._changed.wait()

    async def run(self) -> None:
        """Stay connected and registered until cancelled; closes the connection then."""
        try:
            connection = await self._dial()
            while True:
                connection = await self._use(connection)
        finally:
            if self.state.connection is not None:
                self.state.connection.abandon(f"the {self._role.value} ends")
            self._lost()

    async def _dial(self) -> Connection:
        connection = await dial(self._engine, self._relay, self._failed)
        self._failure = ("", 0.0)
        return connection

    async def _use(self, connection: Connection) -> Connection:
        """Do all there is to do on a connection until another takes its place; returns that one."""
        self._lost()
        state = self.state
        state.connection, state.last_error = connection, ""
        state.connects += 1
        _log.info(f"Connected to {connection.remote}", server=self._relay.server, connects=state.connects)
        if self._edge is not None:
            self._edge.attach(connection.conn)
        self._notify()
        duties = [self._observed(connection), self._observed_frame(connection), self._register(connection)]
        if self._on_limit is not None:
            duties.append(self._limit(connection, self._on_limit))
        tasks = [asyncio.create_task(_until_closed(duty)) for duty in duties]
        try:
            return await self._following(connection)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _following(self, connection: Connection) -> Connection:
        """The connection after this one: dialled once it has closed, or beside it while the relay is silent."""
        while True:
            await _first_of(connection.wait_closed(), self._silence(connection))
            if connection.closed is None:
                _log.warning("The relay is silent; trying another connection", server=self._relay.server)
                dialled = await _first_of(self._dial(), self._speech(connection))
                if isinstance(dialled, Connection):
                    connection.abandon("replaced")
                    return dialled
                _log.info("The relay answers again", server=self._relay.server)
            else:
                self.state.last_error = str(connection.closed)
                _log.warning(f"Connection {connection.closed}", server=self._relay.server)
                self._lost()
                return await self._dial()

    async def _silence(self, connection: Connection) -> None:
        """Until keep-alives stay unanswered."""
        heard, looks = -1, 0
        with contextlib.suppress(ConnectionClosed):
            while looks < SILENT_LOOKS:
                await asyncio.sleep(LOOK)
                received = (await connection.inspect()).received_packets
                heard, looks = received, looks + 1 if received == heard else 0

    async def _speech(self, connection: Connection) -> None:
        """Until the relay is heard on the connection again; never when it has closed instead."""
        with contextlib.suppress(ConnectionClosed):
            heard = (await connection.inspect()).received_packets
            while True:
                await asyncio.sleep(LOOK)
                if (await connection.inspect()).received_packets != heard:
                    return
        await asyncio.get_running_loop().create_future()

    async def _observed(self, connection: Connection) -> None:
        address: Address | None = None
        while True:
            address = await connection.wait_observed(other_than=address)
            _log.info(f"Observed at {address}", form="ztna-v1")
            self._notify()

    async def _observed_frame(self, connection: Connection) -> None:
        address: Address | None = None
        while True:
            address = await connection.wait_observed_frame(other_than=address)
            _log.info(f"Observed at {address}", form="OBSERVED_ADDRESS frame")
            self._notify()

    async def _limit(self, connection: Connection, told: Callable[[int], Awaitable[None]]) -> None:
        limit = 0
        while True:
            limit = await connection.wait_datagram_limit(other_than=limit)
            await told(limit)

    async def _register(self, connection: Connection) -> None:
        while True:
            await asyncio.gather(*(self._register_one(connection, service) for service in self.state.services))
            await asyncio.sleep(REPEAT)

    async def _register_one(self, connection: Connection, service: str) -> None:
        before = self.state.services[service]
        try:
            await connection.register(self._role, service)
        except RegistrationError as error:
            standing = Standing.REFUSED
            self.state.last_error = str(error)
            if before is not standing:
                _log.error(f"Not registered as {self._role.value} for service {service!r}", reason=str(error))
        else:
            standing = Standing.REGISTERED
            if before is not standing:
                _log.info(f"Registered as {self._role.value} for service {service!r}")
        self.state.services[service] = standing
        self._notify()

    def _failed(self, reason: str) -> None:
        self.state.last_error = reason
        now = asyncio.get_running_loop().time()
        logged, at = self._failure
        if reason != logged or now - at >= SAME_FAILURE_LOGGED:
            self._failure = (reason, now)
            _log.warning("Cannot connect; trying on", server=self._relay.server, reason=reason)
        self._notify()

    def _lost(self) -> None:
        self.state.connection = None
        self.state.services = dict.fromkeys(self.state.services, Standing.WAITING)
        self._notify()

    def _notify(self) -> None:
        if self._edge is not None:
            self._edge.set_services(self.state.registered)
        self._changed.set()
        self._changed = asyncio.Event()


async def _until_closed(duty: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(ConnectionClosed):
        await duty


async def _first_of(*work: Coroutine[Any, Any, Any]) -> Any:
    """The result of what ends first; the rest is cancelled."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return next(task for task in tasks if task in done).result()
