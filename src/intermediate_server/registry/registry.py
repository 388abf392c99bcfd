"""The registry: registrations in, route changes out.

Rules, for the connectors of one service:

* Connectors with different proven keys share it: all have rank 0.
* Of several connections with the same proven key only the newest is chosen. So a connector that reconnects
  replaces its old connection at once, and the old one moves no agent when it closes later. The one before the newest
  may still send back what is under way on it. Should the newest go first, the older one takes over again: it is
  connected and was told that it is registered.
* Anonymous connectors rank after all proven ones, the newest first; the older are its fallbacks.

The key, not the certificate, tells connectors apart: a renewed certificate with the same key is the same
connector, and two targets with one rendezvous key would make the choice between them arbitrary.

The work for a registration or a closed connection grows with what it changes (its own registrations, and at most
``max_targets`` targets for each service it serves), never with the number of connections.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from intermediate_server.registry.changes import LEAVING, Change, RegistryFull, SetAgent, SetService, Target
from intermediate_server.types import Address, ConnectionId, Peer, Registration, Role


@dataclass(slots=True)
class _Connection:
    """One peer and what it registered, oldest first. Dicts stand for ordered sets."""

    peer: Peer
    agent_of: dict[str, None] = field(default_factory=dict)
    connector_of: dict[str, None] = field(default_factory=dict)

    def of(self, role: Role) -> dict[str, None]:
        return self.agent_of if role is Role.AGENT else self.connector_of

    @property
    def key_hash(self) -> bytes | None:
        return None if self.peer.identity is None else self.peer.identity.key_hash


@dataclass(slots=True)
class _Service:
    """The live connections of one service, oldest first."""

    agents: dict[ConnectionId, None] = field(default_factory=dict)
    proven: dict[bytes, dict[ConnectionId, None]] = field(default_factory=dict)
    """By hash of the proven key."""
    anonymous: dict[ConnectionId, None] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    """As the engine last had them."""

    @property
    def unused(self) -> bool:
        return not (self.agents or self.proven or self.anonymous)


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of the registry."""

    connections: int
    """Connections with at least one registration."""
    services: int
    """Services with at least one agent or connector."""
    agents: int
    """Registrations as agent."""
    connectors: int
    """Registrations as connector."""


class Registry:
    """The registrations of all live connections, and the routes that follow from them.

    Every method that changes something returns the changes for the engine, to be applied in order as one batch;
    an empty tuple means that the routes are as they were. Does no IO and needs no lock: it belongs to one thread.
    """

    def __init__(
        self,
        *,
        max_services_per_connection: int = 64,
        max_services: int = 65_536,
        max_targets: int = 256,
        max_anonymous_targets: int = 16,
    ) -> None:
        """Limits, each at least 1.

        ``max_services_per_connection`` counts registrations of both roles. ``max_targets`` and
        ``max_anonymous_targets`` bound the targets of a service in the engine: further connectors are registered, wait,
        and move up as others go.
        """
        self._max_per_connection = max_services_per_connection
        self._max_services = max_services
        self._max_targets = max_targets
        self._max_anonymous = max_anonymous_targets
        self._connections: dict[ConnectionId, _Connection] = {}
        self._services: dict[str, _Service] = {}
        self._agents = 0
        self._connectors = 0

    # Changes

    def register(self, registration: Registration) -> tuple[Change, ...] | RegistryFull:
        """Add a registration; a repeated one changes nothing, and is to be acknowledged again."""
        peer, role, name = registration.peer, registration.role, registration.service
        connection = self._connections.get(peer.conn)
        if connection is None:
            connection = _Connection(peer)
        elif name in connection.of(role):
            return ()
        if len(connection.agent_of) + len(connection.connector_of) >= self._max_per_connection:
            return RegistryFull("services_per_connection", self._max_per_connection)
        service = self._services.get(name)
        if service is None:
            if len(self._services) >= self._max_services:
                return RegistryFull("services", self._max_services)
            service = self._services[name] = _Service()
        self._connections[peer.conn] = connection
        connection.of(role)[name] = None
        if role is Role.AGENT:
            self._agents += 1
            service.agents[peer.conn] = None
            return (_set_agent(connection),)
        self._connectors += 1
        key_hash = connection.key_hash
        group = service.anonymous if key_hash is None else service.proven.setdefault(key_hash, {})
        group[peer.conn] = None
        return self._retarget(name, service)

    def revoke(self, conn: ConnectionId, role: Role, service: str) -> tuple[Change, ...]:
        """Revoke a registration, if it is there."""
        connection = self._connections.get(conn)
        if connection is None or service not in connection.of(role):
            return ()
        del connection.of(role)[service]
        if not connection.agent_of and not connection.connector_of:
            del self._connections[conn]
        if role is Role.AGENT:
            self._revoke_agent(connection, service)
            return (_set_agent(connection),)
        return self._revoke_connector(connection, service)

    def close(self, conn: ConnectionId) -> tuple[Change, ...]:
        """Revoke the registrations of a connection, if it has any."""
        connection = self._connections.pop(conn, None)
        if connection is None:
            return ()
        changes: list[Change] = []
        for name in connection.connector_of:
            changes.extend(self._revoke_connector(connection, name))
        if connection.agent_of:
            for name in connection.agent_of:
                self._revoke_agent(connection, name)
            changes.append(SetAgent(conn, (), connection.key_hash))
        return tuple(changes)

    def moved(self, conn: ConnectionId, address: Address) -> None:
        """Note the new address of a peer; routes do not depend on it."""
        connection = self._connections.get(conn)
        if connection is not None:
            connection.peer = replace(connection.peer, address=address)

    # Queries

    def peer(self, conn: ConnectionId) -> Peer | None:
        """The peer of a connection that has a registration."""
        connection = self._connections.get(conn)
        return None if connection is None else connection.peer

    def agents(self, service: str) -> tuple[ConnectionId, ...]:
        """The agents of a service, oldest registration first."""
        state = self._services.get(service)
        return () if state is None else tuple(state.agents)

    def connectors(self, service: str) -> tuple[ConnectionId, ...]:
        """The connectors of a service: targets in their order, then waiting ones."""
        state = self._services.get(service)
        if state is None:
            return ()
        order = {target.conn: None for target in state.targets}
        for group in (*state.proven.values(), state.anonymous):
            order.update(dict.fromkeys(reversed(group)))
        return tuple(order)

    def targets(self, service: str) -> tuple[Target, ...]:
        """The connectors of a service as the engine last had them, best first."""
        state = self._services.get(service)
        return () if state is None else state.targets

    def services(self) -> tuple[str, ...]:
        """Every service that has an agent or a connector, oldest first."""
        return tuple(self._services)

    def registrations(self, conn: ConnectionId) -> tuple[Registration, ...]:
        """The registrations of a connection: as agent, then as connector, each oldest first."""
        connection = self._connections.get(conn)
        if connection is None:
            return ()
        return tuple(
            Registration(connection.peer, role, name)
            for role in (Role.AGENT, Role.CONNECTOR)
            for name in connection.of(role)
        )

    def connections(self) -> tuple[ConnectionId, ...]:
        """Every connection that has a registration, oldest first."""
        return tuple(self._connections)

    @property
    def counts(self) -> Counts:
        """The counts, at no cost."""
        return Counts(len(self._connections), len(self._services), self._agents, self._connectors)

    # How

    def _revoke_agent(self, connection: _Connection, name: str) -> None:
        self._agents -= 1
        service = self._services[name]
        del service.agents[connection.peer.conn]
        if service.unused:
            del self._services[name]

    def _revoke_connector(self, connection: _Connection, name: str) -> tuple[Change, ...]:
        self._connectors -= 1
        service = self._services[name]
        key_hash = connection.key_hash
        if key_hash is None:
            del service.anonymous[connection.peer.conn]
        else:
            group = service.proven[key_hash]
            del group[connection.peer.conn]
            if not group:
                del service.proven[key_hash]
        if service.unused:
            del self._services[name]
        return self._retarget(name, service)

    def _retarget(self, name: str, service: _Service) -> tuple[Change, ...]:
        targets = tuple(islice(self._choose(service), self._max_targets))
        if targets == service.targets:
            return ()
        service.targets = targets
        return (SetService(name, targets),)

    def _choose(self, service: _Service) -> Iterator[Target]:
        for key_hash, group in service.proven.items():
            yield Target(next(reversed(group)), 0, int.from_bytes(key_hash[:8], "big"))
        newest = islice(reversed(service.anonymous), self._max_anonymous)
        for rank, conn in enumerate(newest, start=1):
            yield Target(conn, rank, conn)
        for key_hash, group in service.proven.items():
            for conn in islice(reversed(group), 1, 2):
                yield Target(conn, LEAVING, int.from_bytes(key_hash[:8], "big"))


def _set_agent(connection: _Connection) -> SetAgent:
    return SetAgent(connection.peer.conn, tuple(connection.agent_of), connection.key_hash)
