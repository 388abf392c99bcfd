"""Which agents and connectors are introduced to each other, and for which services."""

from __future__ import annotations

from dataclasses import dataclass, field

from intermediate_server.signaling.actions import Introduce, Separate
from intermediate_server.signaling.settings import Limits
from intermediate_server.types import ConnectionId, Role


@dataclass(slots=True)
class Introductions:
    """The introduced pairs: each begins with its first service and ends with its last."""

    connectors: dict[ConnectionId, dict[ConnectionId, set[str]]] = field(default_factory=dict)
    """By agent, then by connector: the services."""
    agents: dict[ConnectionId, set[ConnectionId]] = field(default_factory=dict)
    """By connector."""
    count: int = 0
    """How many pairs there are."""

    def room(self, agent: ConnectionId, connector: ConnectionId, limits: Limits) -> bool:
        """Whether the pair is introduced or can be."""
        connectors = self.connectors.get(agent, {})
        return connector in connectors or (
            len(connectors) < limits.introduced_per_agent
            and len(self.agents.get(connector, ())) < limits.introduced_per_connector
        )

    def add(self, agent: ConnectionId, connector: ConnectionId, service: str) -> list[Introduce]:
        """Introduce a pair for a service; nothing is to be done for a pair that is introduced."""
        self.connectors.setdefault(agent, {}).setdefault(connector, set()).add(service)
        if agent in self.agents.get(connector, ()):
            return []
        self.agents.setdefault(connector, set()).add(agent)
        self.count += 1
        return [Introduce(agent, connector)]

    def revoke(self, conn: ConnectionId, role: Role, service: str) -> list[Separate]:
        """End what the pairs of a connection have by its registration for a service."""
        separated: list[Separate] = []
        for agent, connector in self._pairs(conn, role):
            services = self.connectors[agent][connector]
            services.discard(service)
            if not services:
                separated.append(self._remove(agent, connector))
        return separated

    def close(self, conn: ConnectionId) -> list[Separate]:
        """End all pairs of a connection."""
        return [self._remove(*pair) for role in Role for pair in self._pairs(conn, role)]

    def _pairs(self, conn: ConnectionId, role: Role) -> list[tuple[ConnectionId, ConnectionId]]:
        if role is Role.AGENT:
            return [(conn, connector) for connector in self.connectors.get(conn, ())]
        return [(agent, conn) for agent in self.agents.get(conn, ())]

    def _remove(self, agent: ConnectionId, connector: ConnectionId) -> Separate:
        connectors, agents = self.connectors[agent], self.agents[connector]
        del connectors[connector]
        agents.remove(agent)
        if not connectors:
            del self.connectors[agent]
        if not agents:
            del self.agents[connector]
        self.count -= 1
        return Separate(agent, connector)
