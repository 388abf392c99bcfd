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
from intermediate_server.client.tasks import beside, first_of
from intermediate_server.errors import ConnectionClosed, RegistrationError
from intermediate_server.types import Address, Role

LOOK = 0.25
"""Seconds between two looks at whether the relay still answers."""
ANSWER = 0.75
"""Seconds, or four round trips, that a PING may stay unanswered before another connection is tried beside this one."""
REPEAT = 30.0
"""Seconds after which services are registered again: one that was refused or withdrawn may be granted now."""
SAME_FAILURE_LOGGED = 30.0
"""Seconds between two log lines about the same failure."""

_log = structlog.get_logger()


class Standing(enum.Enum):
    """What the relay said about a service."""

    WAITING = "waiting"
    ACKNOWLEDGED = "acknowledged"
    """Granted; whether a connector answers is being asked."""
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
    silent: bool = False
    """Whether the relay has stopped answering on the connection."""
    last_error: str = ""
    """Why the last try or registration failed; empty once all is well."""

    @property
    def registered(self) -> list[str]:
        """The services whose registration is complete on the present connection."""
        return [name for name, standing in self.services.items() if standing is Standing.REGISTERED]

    @property
    def usable(self) -> list[str]:
        """The services whose traffic would arrive now."""
        granted = (Standing.ACKNOWLEDGED, Standing.REGISTERED)
        return [] if self.silent else [name for name, standing in self.services.items() if standing in granted]


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
        self._addresses: list[tuple[str, int]] = []

    async def wait_until(self, predicate: Callable[[State], bool]) -> None:
        """Wait until the state is as wanted."""
        while not predicate(self.state):
            await self._changed.wait()

    def relay_hosts(self) -> list[str]:
        """The addresses at which the relay was last found."""
        return [host for host, _ in self._addresses]

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
        connection = await dial(self._engine, self._relay, self._addresses, self._failed)
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
        async with beside(*map(_until_closed, duties)):
            return await self._following(connection)

    async def _following(self, connection: Connection) -> Connection:
        """The connection after this one: dialled once it has closed, or beside it while the relay is silent."""
        while True:
            await first_of(connection.wait_closed(), self._silence(connection))
            if connection.closed is None:
                self._tell_silent("the relay is silent")
                _log.warning("The relay is silent; trying another connection", server=self._relay.server)
            else:
                self._ended(connection)
            dialled = await first_of(self._dial(), self._speech(connection))
            if isinstance(dialled, Connection):
                connection.abandon("replaced")
                return dialled
            _log.info("The relay answers again", server=self._relay.server)
            self._tell_silent("")

    async def _silence(self, connection: Connection) -> None:
        """Until a PING stays unanswered."""
        loop = asyncio.get_running_loop()
        heard, at = -1, 0.0
        with contextlib.suppress(ConnectionClosed):
            while True:
                now = await connection.inspect()
                if now.received_packets != heard:
                    heard, at = now.received_packets, loop.time()
                elif loop.time() - at > self._relay.keep_alive + max(ANSWER, 4 * now.rtt_us / 1e6):
                    return
                await asyncio.sleep(LOOK)

    async def _speech(self, connection: Connection) -> None:
        """Until the relay is heard on the connection again; never when it has closed."""
        try:
            heard = (await connection.inspect()).received_packets
            while True:
                await asyncio.sleep(LOOK)
                if (await connection.inspect()).received_packets != heard:
                    return
        except ConnectionClosed:
            self._ended(connection)
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
                if self._edge is not None and self._role is Role.AGENT:
                    self.state.services[service] = Standing.ACKNOWLEDGED
                    self._notify()
                    await self._edge.wait_connector(service)
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

    def _tell_silent(self, reason: str) -> None:
        self.state.silent, self.state.last_error = bool(reason), reason
        self._notify()

    def _ended(self, connection: Connection) -> None:
        if self.state.connection is not None:
            _log.warning(f"Connection {connection.closed}", server=self._relay.server)
            self.state.last_error = str(connection.closed)
            self._lost()

    def _lost(self) -> None:
        self.state.connection = None
        self.state.silent = False
        self.state.services = dict.fromkeys(self.state.services, Standing.WAITING)
        self._notify()

    def _notify(self) -> None:
        if self._edge is not None:
            self._edge.set_services(self.state.usable)
        self._changed.set()
        self._changed = asyncio.Event()


async def _until_closed(duty: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(ConnectionClosed):
        await duty
