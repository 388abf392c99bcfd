"""Random histories against a model that recomputes everything from the list of live registrations."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.registering import peer

from intermediate_server.registry import LEAVING, Change, Registry, RegistryFull, SetAgent, SetService, Target
from intermediate_server.types import ConnectionId, Registration, Role

SERVICES = ("", "web", "Web", "db")
KEYS = (None, None, "one", "two", "three")
PER_CONNECTION, IN_ALL, TARGETS, ANONYMOUS = 4, 3, 3, 2


def by_rank(target: Target) -> tuple[int, int]:
    return target.rank, target.conn


@dataclass
class Model:
    """Every live registration in order of arrival, and what the engine believes after the changes so far."""

    live: list[Registration] = field(default_factory=list)
    services: dict[str, tuple[Target, ...]] = field(default_factory=dict)
    agents: dict[ConnectionId, SetAgent] = field(default_factory=dict)

    def apply(self, changes: tuple[Change, ...]) -> None:
        for change in changes:
            match change:
                case SetService(service, ()):
                    del self.services[service]
                case SetService(service, targets):
                    assert self.services.get(service) != targets, "a change that changes nothing"
                    self.services[service] = targets
                case SetAgent(conn, ()):
                    del self.agents[conn]
                case SetAgent(conn):
                    self.agents[conn] = change

    def full(self, wanted: Registration) -> bool:
        mine = [one for one in self.live if one.peer.conn == wanted.peer.conn]
        names = {one.service for one in self.live}
        return len(mine) >= PER_CONNECTION or (wanted.service not in names and len(names) >= IN_ALL)

    def targets(self, service: str) -> tuple[tuple[Target, ...], list[Target]]:
        """The targets to choose from, and those that may still send back if there is room for them."""
        newest: dict[bytes, Registration] = {}
        replaced: dict[bytes, Registration] = {}
        anonymous: list[Registration] = []
        for one in self.live:
            if one.role is Role.CONNECTOR and one.service == service:
                if one.peer.identity is None:
                    anonymous.insert(0, one)
                else:
                    key = one.peer.identity.key_hash
                    if key in newest:
                        replaced[key] = newest[key]
                    newest[key] = one
        chosen = [Target(one.peer.conn, 0, int.from_bytes(key_hash[:8], "big")) for key_hash, one in newest.items()] + [
            Target(one.peer.conn, rank, one.peer.conn) for rank, one in enumerate(anonymous[:ANONYMOUS], 1)
        ]
        leaving = [
            Target(one.peer.conn, LEAVING, int.from_bytes(key_hash[:8], "big")) for key_hash, one in replaced.items()
        ]
        return tuple(chosen[:TARGETS]), leaving

    def check(self, registry: Registry) -> None:
        for service in SERVICES:
            targets = registry.targets(service)
            assert self.services.get(service, ()) == targets
            # Among equals the order says nothing; the registry keeps it steady, the model does not.
            expected, replaced = self.targets(service)
            chosen, leaving = targets[: len(expected)], targets[len(expected) :]
            assert sorted(chosen, key=by_rank) == sorted(expected, key=by_rank)
            assert set(leaving) <= set(replaced)
            assert len(leaving) == min(len(replaced), TARGETS - len(expected))
            users = [one for one in self.live if one.service == service]
            connectors = {one.peer.conn for one in users if one.role is Role.CONNECTOR}
            assert len(registry.connectors(service)) == len(connectors)
            assert set(registry.connectors(service)) == connectors
            assert registry.agents(service) == tuple(one.peer.conn for one in users if one.role is Role.AGENT)
        agents: dict[ConnectionId, SetAgent] = {}
        for one in self.live:
            if one.role is Role.AGENT:
                before = agents.get(one.peer.conn, SetAgent(one.peer.conn, (), None)).services
                key_hash = None if one.peer.identity is None else one.peer.identity.key_hash
                agents[one.peer.conn] = SetAgent(one.peer.conn, (*before, one.service), key_hash)
        assert self.agents == agents
        for conn in {one.peer.conn for one in self.live}:
            assert set(registry.registrations(conn)) == {one for one in self.live if one.peer.conn == conn}
        counts = registry.counts
        assert counts.connections == len({one.peer.conn for one in self.live})
        assert counts.services == len({one.service for one in self.live})
        assert counts.agents + counts.connectors == len(self.live)
        assert counts.agents == sum(one.role is Role.AGENT for one in self.live)


connections = st.integers(1, 8)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("register"), connections, st.sampled_from(Role), st.sampled_from(SERVICES)),
        st.tuples(st.just("revoke"), connections, st.sampled_from(Role), st.sampled_from(SERVICES)),
        st.tuples(st.just("remove"), connections, st.none(), st.none()),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(st.lists(st.sampled_from(KEYS), min_size=8, max_size=8), steps)
def test_every_history_gives_the_routes_of_the_model_and_leaves_nothing(
    keys: list[str | None], history: list[tuple[str, int, Role | None, str | None]]
) -> None:
    limits = {
        "max_services_per_connection": PER_CONNECTION,
        "max_services": IN_ALL,
        "max_targets": TARGETS,
        "max_anonymous_targets": ANONYMOUS,
    }
    registry, model = Registry(**limits), Model()
    for action, conn, role, service in history:
        who = peer(conn, keys[conn - 1])
        if role is None or service is None:
            model.live = [one for one in model.live if one.peer.conn != conn]
            model.apply(registry.close(who.conn))
        elif action == "revoke":
            wanted = Registration(who, role, service)
            if wanted in model.live:
                model.live.remove(wanted)
                model.apply(registry.revoke(who.conn, role, service))
            else:
                assert registry.revoke(who.conn, role, service) == ()
        else:
            wanted = Registration(who, role, service)
            result = registry.register(wanted)
            if wanted in model.live:
                assert result == ()
            elif model.full(wanted):
                assert isinstance(result, RegistryFull)
            else:
                assert not isinstance(result, RegistryFull)
                model.live.append(wanted)
                model.apply(result)
        model.check(registry)
    for conn in range(1, 9):
        model.apply(registry.close(ConnectionId(conn)))
    assert model.services == {}
    assert model.agents == {}
    assert vars(registry) == vars(Registry(**limits))
