"""The supervisor: keeps a peer connected and registered, and brings it back after any interruption."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import structlog

from intermediate_server.client.connection import Connection
from intermediate_server.client.dial import Dialler, Remote
from intermediate_server.client.engine import ClientEngine
from intermediate_server.client.reasons import of_end, of_refusal
from intermediate_server.client.relay import Opener, Relay, addresses
from intermediate_server.client.state import RegistrationState, State
from intermediate_server.client.successor import Successor, prepare
from intermediate_server.client.tasks import background, first_of
from intermediate_server.client.tunnel import Tunnel
from intermediate_server.errors import CertificateError, ConfigError, ConnectionClosed, RegistrationError
from intermediate_server.logs import Repeats
from intermediate_server.types import Address, Role

LOOK = 0.25
"""Seconds between two looks at whether the relay still answers."""
ANSWER = 0.75
"""Seconds, or four round trips, that a PING may stay unanswered before another connection is tried beside this one."""
REPEAT = 30.0
"""Seconds after which services are registered again, since a denied or revoked one may be granted now."""
HELD = 10.0
"""Seconds after which a registration has held; a relay that ends it earlier is dialled only after a pause."""

_log = structlog.get_logger()


class Supervisor:
    """Keeps one connection to a relay, with its registrations and the tunnel that uses it."""

    def __init__(
        self,
        engine: ClientEngine,
        relay: Relay,
        *,
        role: Role,
        services: Sequence[str],
        tunnel: Tunnel | None = None,
        on_limit: Callable[[int], Awaitable[None]] | None = None,
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``on_limit`` is called with the largest DATAGRAM of the connection, in bytes, and at each change.

        ``ready`` is awaited before the relay is dialled.
        """
        self.state = State(services=dict.fromkeys(services, RegistrationState.WAITING))
        self._engine = engine
        self._relay = relay
        self._role = role
        self._tunnel = tunnel
        self._on_limit = on_limit
        self._ready = ready
        self._changed = asyncio.Event()
        self._renewal = asyncio.Event()
        self._repeats = Repeats()
        self._dialler = Dialler(Opener(engine, relay), lambda: addresses(relay), self._failed)
        self._open: Connection | None = None
        self._observed_at: Address | None = None
        """The present connection, let in or not."""
        self._held = False
        """Whether a registration has held on it."""
        self._quiet = False
        """Whether lines about a recurring failure are at debug level now."""

    async def wait_until(self, predicate: Callable[[State], bool]) -> None:
        """Wait until ``predicate`` is true of the state."""
        while not predicate(self.state):
            await self._changed.wait()

    def relay_hosts(self) -> list[str]:
        """The last addresses of the relay."""
        return [host for host, _ in self._dialler.known]

    def renew(self) -> None:
        """Read the certificate files again, and connect with them before the present connection is let go."""
        self._renewal.set()

    async def run(self) -> None:
        """Stay connected and registered until cancelled; closes the connection then."""
        try:
            self._log_connecting()
            following: Successor | tuple[Connection, Remote] = await self._dial()
            while True:
                following = await self._use(following)
        finally:
            if self._open is not None:
                self._open.abandon(f"the {self._role.value} ends")
            self._lost()

    async def _use(self, following: Successor | tuple[Connection, Remote]) -> Successor | tuple[Connection, Remote]:
        """Run all tasks of a connection until another takes its place; returns the other one."""
        tasks: list[Coroutine[Any, Any, None]] = []
        if isinstance(following, Successor):
            connection, address = following.connection, following.address
            if self._tunnel is not None:
                self._tunnel.take_over(connection.conn)
            self._served(connection)
            for service, error in following.answers.items():
                self._take_answer(service, error)
            self._notify()
            tasks.append(following.let_go())
        else:
            connection, address = following
            self._lost()
            if self._tunnel is not None:
                self._tunnel.attach(connection.conn)
            tasks.append(self._let_in(connection))
        self._open, self._held, self._observed_at = connection, False, None
        tasks += [
            self._hold(address),
            self._observed(connection),
            self._observed_frame(connection),
            self._register(connection, again=isinstance(following, Successor)),
        ]
        if self._on_limit is not None:
            tasks.append(self._limit(connection, self._on_limit))
        async with background(*map(_until_closed, tasks)):
            return await self._following(connection, address)

    async def _following(self, connection: Connection, address: Remote) -> Successor | tuple[Connection, Remote]:
        """The connection after this one: dialled once it has closed, or beside it while the relay is silent.

        A new certificate is no interruption: its connection is ready before this one is let go.
        """
        while True:
            successor = self._successor(connection)
            ended = await first_of(successor, connection.wait_closed(), self._silence(connection))
            if isinstance(ended, Successor):
                return ended
            if connection.closed is None:
                self._record_silence("the relay is silent")
                _log.warning("The relay is silent; trying another connection", server=self._relay.server)
            else:
                self._ended(connection, address)
            renewal_is_due = self._renewal.is_set()
            dialled = await first_of(self._dial(), self._speech(connection, address))
            if dialled is not None:
                connection.abandon("replaced")
                return dialled  # type: ignore[no-any-return]  # speech has no result
            _log.info("The relay answers again", server=self._relay.server)
            self._record_silence("")
            if renewal_is_due:
                self._renewal.set()

    async def _dial(self) -> tuple[Connection, Remote]:
        if self._ready is not None:
            await self._ready()
        # Whatever is dialled from now on is dialled with the present files.
        self._renewal.clear()
        return await self._dialler.dial()

    async def _successor(self, before: Connection) -> Successor:
        """A connection with other certificate files, once they are there and it can take the place of ``before``."""
        while True:
            await self._renewal.wait()
            try:
                self._relay.check()
                _log.info("Certificates read again; connecting with them", server=self._relay.server)
                successor = await self._prepared(before)
                self._renewal.clear()
                return successor
            except (CertificateError, ConfigError) as error:
                self._renewal.clear()
                _log.error("The connection stays as it is; its certificates are not replaced", reason=str(error))

    async def _prepared(self, before: Connection) -> Successor:
        """A connection that carries all that ``before`` does. Raises ``CertificateError``."""
        connection, address = await self._dialler.dial()
        present = self.state.services
        try:
            successor = await prepare(
                connection, address, before, role=self._role, services=present, tunnel=self._tunnel
            )
            lost = [name for name in self.state.registered if successor.answers[name] is not None]
            if lost:
                raise CertificateError("; ".join(self._refusal(name, successor.answers[name]) for name in lost))
            return successor
        except ConnectionClosed:
            ended = await connection.wait_closed()
            raise CertificateError(of_end(ended, self._relay.shown)) from None
        except BaseException:
            connection.abandon("not needed")
            raise

    async def _silence(self, connection: Connection) -> None:
        """Wait until a PING stays unanswered."""
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

    async def _speech(self, connection: Connection, address: Remote) -> None:
        """Wait until the relay is heard on the connection again; for ever when it has closed."""
        try:
            heard = (await connection.inspect()).received_packets
            while True:
                await asyncio.sleep(LOOK)
                if (await connection.inspect()).received_packets != heard:
                    return
        except ConnectionClosed:
            self._ended(connection, address)
            await asyncio.get_running_loop().create_future()

    async def _let_in(self, connection: Connection) -> None:
        """Report the connection once the relay serves us; after the handshake it may still refuse."""
        await connection.wait_let_in()
        self._served(connection)

    def _served(self, connection: Connection) -> None:
        state = self.state
        state.connection, state.last_error, state.ended = connection, "", None
        state.connects += 1
        self._info(f"Connected to {connection.remote}", server=self._relay.server, connects=state.connects)
        self._notify()

    async def _hold(self, address: Remote) -> None:
        """Forget the relay's refusals once a registration has held."""
        await self.wait_until(lambda state: bool(state.usable))
        await asyncio.sleep(HELD)
        self._held = True
        self._dialler.served(address)
        if self._quiet:
            self._quiet = False
            _log.info("Connected and registered", server=self._relay.server, services=", ".join(self.state.registered))

    async def _observed(self, connection: Connection) -> None:
        address: Address | None = None
        while True:
            address = await connection.wait_observed(other_than=address)
            self._seen_at(address)

    async def _observed_frame(self, connection: Connection) -> None:
        await connection.wait_let_in()
        address: Address | None = None
        while True:
            address = await connection.wait_observed_frame(other_than=address)
            self._seen_at(address)

    def _seen_at(self, address: Address) -> None:
        """Log an address once, though the relay reports it in two forms, and each change of it."""
        if address != self._observed_at:
            self._observed_at = address
            self._info(f"Observed at {address}")
        self._notify()

    async def _limit(self, connection: Connection, told: Callable[[int], Awaitable[None]]) -> None:
        limit = 0
        while True:
            limit = await connection.wait_datagram_limit(other_than=limit)
            await told(limit)

    async def _register(self, connection: Connection, *, again: bool) -> None:
        """Register all services now and from time to time; ``again`` begins with the pause."""
        if again:
            await asyncio.sleep(REPEAT)
        while True:
            await asyncio.gather(*(self._register_one(connection, service) for service in self.state.services))
            await asyncio.sleep(REPEAT)

    async def _register_one(self, connection: Connection, service: str) -> None:
        try:
            await connection.register(self._role, service)
        except RegistrationError as error:
            self._take_answer(service, error)
        else:
            if self.state.services[service] is not RegistrationState.REGISTERED:
                if self._tunnel is not None and self._role is Role.AGENT:
                    self.state.services[service] = RegistrationState.ACKNOWLEDGED
                    self._notify()
                    await self._tunnel.wait_connector(service)
                self._info(f"Registered as {self._role.value} for service {service!r}")
            self.state.services[service] = RegistrationState.REGISTERED
        self._notify()

    def _take_answer(self, service: str, error: RegistrationError | None) -> None:
        """Record the relay's answer about a service; None is a registration."""
        if error is None:
            self._info(f"Registered as {self._role.value} for service {service!r}")
            self.state.services[service] = RegistrationState.REGISTERED
            return
        self.state.last_error = reason = self._refusal(service, error)
        known = self.state.services[service] is RegistrationState.REFUSED
        if not known and (more := self._due(reason)) is not None:
            _log.error(f"Not registered as {self._role.value} for service {service!r}", reason=reason, **more)
        self.state.services[service] = RegistrationState.REFUSED

    def _refusal(self, service: str, error: RegistrationError | None) -> str:
        answered = error is not None and error.answered
        return f"{error}; {of_refusal(self._role, service, self._relay.identity_file)}" if answered else str(error)

    def _failed(self, reason: str) -> None:
        self.state.last_error = reason
        if (more := self._due(reason)) is not None:
            _log.warning("Cannot connect; trying on", server=self._relay.server, reason=reason, **more)
        self._notify()

    def _due(self, cause: str) -> dict[str, int] | None:
        return self._repeats.due(cause, asyncio.get_running_loop().time())

    def _info(self, text: str, **facts: Any) -> None:
        (_log.debug if self._quiet else _log.info)(text, **facts)

    def _log_connecting(self) -> None:
        self._info(f"Connecting to {self._relay.server}", role=self._role.value)

    def _record_silence(self, reason: str) -> None:
        self.state.silent, self.state.last_error = bool(reason), reason
        self._notify()

    def _ended(self, connection: Connection, address: Remote) -> None:
        if self._open is None or connection.closed is None:
            return
        if not self._held:
            self._dialler.refused(address)
        reason = of_end(connection.closed, self._relay.shown)
        served = self.state.connection is not None
        self._lost()
        self.state.last_error, self.state.ended = reason, connection.closed
        more = self._due(reason)
        self._quiet = more is None
        if more is not None:
            text = f"Connection lost: {reason}" if served else f"Not let in: {reason}"
            # A restart of the relay is an everyday event.
            plain = served and connection.closed.code == 0
            (_log.info if plain else _log.warning)(text, server=self._relay.server, **more)
        if served:
            self._log_connecting()
        self._notify()

    def _lost(self) -> None:
        self._open = None
        self.state.connection = None
        self.state.silent = False
        self.state.services = dict.fromkeys(self.state.services, RegistrationState.WAITING)
        self._notify()

    def _notify(self) -> None:
        if self._tunnel is not None:
            self._tunnel.set_services(self.state.usable)
        self._changed.set()
        self._changed = asyncio.Event()


async def _until_closed(task: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(ConnectionClosed):
        await task
