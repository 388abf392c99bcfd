"""Registration, replacement, fallback and cleaning up, one rule at a time."""

from __future__ import annotations

import hashlib
from ipaddress import ip_address

import pytest
from tests.unit.registering import identity, peer

from intermediate_server.registry import LEAVING, Change, Counts, Registry, RegistryFull, SetAgent, SetService, Target
from intermediate_server.types import Address, ConnectionId, Peer, Registration, Role

AGENT, CONNECTOR = Role.AGENT, Role.CONNECTOR


def rendezvous(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def register(registry: Registry, who: Peer, role: Role, service: str = "web") -> tuple[Change, ...]:
    changes = registry.register(Registration(who, role, service))
    assert not isinstance(changes, RegistryFull)
    return changes


def proven(conn: int, key: str) -> Target:
    return Target(ConnectionId(conn), 0, rendezvous(key))


def leaving(conn: int, key: str) -> Target:
    return Target(ConnectionId(conn), LEAVING, rendezvous(key))


def anonymous(conn: int, rank: int) -> Target:
    return Target(ConnectionId(conn), rank, conn)


def routes(service: str, *targets: Target) -> tuple[Change, ...]:
    return (SetService(service, targets),)


def test_an_agent_may_reach_its_services_in_order_of_registration() -> None:
    registry = Registry()
    who = peer(1)
    assert register(registry, who, AGENT, "b") == (SetAgent(who.conn, ("b",), None),)
    assert register(registry, who, AGENT, "a") == (SetAgent(who.conn, ("b", "a"), None),)
    assert registry.revoke(who.conn, AGENT, "b") == (SetAgent(who.conn, ("a",), None),)
    assert register(registry, who, AGENT, "b") == (SetAgent(who.conn, ("a", "b"), None),)
    assert registry.close(who.conn) == (SetAgent(who.conn, (), None),)


def test_an_agent_with_a_certificate_carries_the_hash_of_its_key() -> None:
    assert register(Registry(), peer(1, "alice"), AGENT) == (
        SetAgent(ConnectionId(1), ("web",), hashlib.sha256(b"alice").digest()),
    )


def test_a_repeated_registration_changes_nothing() -> None:
    registry = Registry()
    for role in Role:
        register(registry, peer(1), role)
        assert register(registry, peer(1), role) == ()
    assert registry.counts == Counts(connections=1, services=1, agents=1, connectors=1)


def test_a_service_without_targets_is_removed() -> None:
    registry = Registry()
    register(registry, peer(1), CONNECTOR)
    assert registry.revoke(ConnectionId(1), CONNECTOR, "web") == routes("web")
    register(registry, peer(2), CONNECTOR)
    assert registry.close(ConnectionId(2)) == routes("web")


def test_connectors_with_different_keys_share_a_service() -> None:
    registry = Registry()
    assert register(registry, peer(1, "one"), CONNECTOR) == routes("web", proven(1, "one"))
    assert register(registry, peer(2, "two"), CONNECTOR) == routes("web", proven(1, "one"), proven(2, "two"))
    assert registry.close(ConnectionId(1)) == routes("web", proven(2, "two"))


@pytest.mark.parametrize("serial", [1, 2], ids=["same certificate", "renewed certificate"])
def test_a_reconnected_connector_replaces_its_old_connection_at_once(serial: int) -> None:
    registry = Registry()
    register(registry, peer(1, "one"), CONNECTOR)
    register(registry, peer(2, "two"), CONNECTOR)
    expected = [proven(3, "one"), proven(2, "two")]
    assert register(registry, peer(3, "one", serial=serial), CONNECTOR) == routes("web", *expected, leaving(1, "one"))
    assert registry.close(ConnectionId(1)) == routes("web", *expected), "the old connection closes late"
    assert registry.connectors("web") == (3, 2)


def test_the_last_connection_that_was_replaced_may_still_send_back() -> None:
    registry = Registry()
    for conn in (1, 2):
        register(registry, peer(conn, "one"), CONNECTOR)
    assert register(registry, peer(3, "one"), CONNECTOR) == routes("web", proven(3, "one"), leaving(2, "one"))
    assert registry.revoke(ConnectionId(2), CONNECTOR, "web") == routes("web", proven(3, "one"), leaving(1, "one"))
    assert registry.revoke(ConnectionId(1), CONNECTOR, "web") == routes("web", proven(3, "one"))


def test_an_old_connection_takes_over_again_when_the_newer_one_goes_first() -> None:
    registry = Registry()
    register(registry, peer(1, "one"), CONNECTOR)
    register(registry, peer(2, "one"), CONNECTOR)
    assert registry.connectors("web") == (2, 1)
    assert register(registry, peer(1, "one"), CONNECTOR) == (), "a late retry does not take the service back"
    assert registry.close(ConnectionId(2)) == routes("web", proven(1, "one"))


def test_the_newest_anonymous_connector_is_used_and_the_older_are_fallbacks() -> None:
    registry = Registry()
    register(registry, peer(1), CONNECTOR)
    assert register(registry, peer(2), CONNECTOR) == routes("web", anonymous(2, 1), anonymous(1, 2))
    assert register(registry, peer(3), CONNECTOR) == routes("web", anonymous(3, 1), anonymous(2, 2), anonymous(1, 3))
    assert registry.close(ConnectionId(3)) == routes("web", anonymous(2, 1), anonymous(1, 2))
    assert registry.close(ConnectionId(1)) == routes("web", anonymous(2, 1))


def test_anonymous_connectors_rank_after_every_proven_one() -> None:
    registry = Registry()
    register(registry, peer(1), CONNECTOR)
    assert register(registry, peer(2, "two"), CONNECTOR) == routes("web", proven(2, "two"), anonymous(1, 1))
    assert register(registry, peer(3), CONNECTOR) == routes("web", proven(2, "two"), anonymous(3, 1), anonymous(1, 2))
    assert registry.close(ConnectionId(2)) == routes("web", anonymous(3, 1), anonymous(1, 2))


def test_a_connection_may_be_agent_and_connector() -> None:
    registry = Registry()
    who = peer(1)
    register(registry, who, AGENT, "db")
    register(registry, who, CONNECTOR, "web")
    register(registry, who, AGENT, "web")
    assert registry.registrations(who.conn) == (
        Registration(who, AGENT, "db"),
        Registration(who, AGENT, "web"),
        Registration(who, CONNECTOR, "web"),
    )
    assert registry.agents("web") == registry.connectors("web") == (1,)
    assert registry.services() == ("db", "web")
    assert registry.close(who.conn) == (SetService("web", ()), SetAgent(who.conn, (), None))


def test_a_connector_of_several_services_leaves_none_behind() -> None:
    """Fault 13: all but the last stayed."""
    registry = Registry()
    who = peer(1, "one")
    for service in ("a", "b", "c"):
        register(registry, who, CONNECTOR, service)
    register(registry, peer(2, "two"), CONNECTOR, "b")
    assert registry.close(who.conn) == (
        SetService("a", ()),
        SetService("b", (proven(2, "two"),)),
        SetService("c", ()),
    )
    assert registry.services() == ("b",)
    registry.close(ConnectionId(2))
    assert vars(registry) == vars(Registry())


def test_what_is_not_there_cannot_be_removed() -> None:
    registry = Registry()
    register(registry, peer(1), AGENT)
    assert registry.close(ConnectionId(9)) == ()
    assert registry.revoke(ConnectionId(9), AGENT, "web") == ()
    assert registry.revoke(ConnectionId(1), CONNECTOR, "web") == ()
    assert registry.revoke(ConnectionId(1), AGENT, "db") == ()
    assert registry.agents("db") == registry.connectors("db") == ()
    assert registry.targets("db") == ()
    assert registry.registrations(ConnectionId(9)) == ()
    assert registry.peer(ConnectionId(9)) is None
    registry.moved(ConnectionId(9), peer(1).address)
    assert registry.counts == Counts(connections=1, services=1, agents=1, connectors=0)


def test_a_new_address_shows_in_the_registrations() -> None:
    registry = Registry()
    register(registry, peer(1, "one"), AGENT)
    address = Address(ip_address("2001:db8::1"), 4433)
    registry.moved(ConnectionId(1), address)
    expected = Peer(ConnectionId(1), address, identity(key="one"))
    assert registry.peer(ConnectionId(1)) == expected
    assert registry.registrations(ConnectionId(1)) == (Registration(expected, AGENT, "web"),)


def test_service_ids_are_told_apart_exactly() -> None:
    registry = Registry()
    for service in ("", "web", "Web", "web\0", "*"):
        register(registry, peer(1), CONNECTOR, service)
    assert registry.services() == ("", "web", "Web", "web\0", "*")


def test_registrations_of_one_connection_are_limited() -> None:
    registry = Registry(max_services_per_connection=2)
    register(registry, peer(1), AGENT, "a")
    register(registry, peer(1), CONNECTOR, "a")
    assert registry.register(Registration(peer(1), AGENT, "b")) == RegistryFull("services_per_connection", 2)
    assert registry.services() == ("a",), "a refused registration leaves nothing behind"
    assert register(registry, peer(1), AGENT, "a") == (), "what is registered is still acknowledged"
    registry.revoke(ConnectionId(1), CONNECTOR, "a")
    assert register(registry, peer(1), AGENT, "b") == (SetAgent(ConnectionId(1), ("a", "b"), None),)


def test_services_are_limited() -> None:
    registry = Registry(max_services=1)
    register(registry, peer(1), AGENT, "a")
    full = registry.register(Registration(peer(2), CONNECTOR, "b"))
    assert full == RegistryFull("services", 1)
    assert str(full) == "services is at its maximum of 1"
    assert registry.connections() == (1,), "a refused connection is not held"
    register(registry, peer(2), CONNECTOR, "a")
    registry.close(ConnectionId(1))
    registry.close(ConnectionId(2))
    assert register(registry, peer(3), CONNECTOR, "b")


def test_connectors_beyond_the_limit_wait_and_move_up() -> None:
    registry = Registry(max_targets=3, max_anonymous_targets=2)
    for conn in (1, 2, 3):
        register(registry, peer(conn), CONNECTOR)
    assert registry.targets("web") == (anonymous(3, 1), anonymous(2, 2))
    assert registry.connectors("web") == (3, 2, 1)
    assert registry.close(ConnectionId(2)) == routes("web", anonymous(3, 1), anonymous(1, 2))
    for conn, key in ((4, "four"), (5, "five"), (6, "six")):
        register(registry, peer(conn, key), CONNECTOR)
    assert registry.targets("web") == (proven(4, "four"), proven(5, "five"), proven(6, "six"))
    assert registry.close(ConnectionId(1)) == (), "one that waits leaves without a change"
    assert registry.close(ConnectionId(5)) == routes("web", proven(4, "four"), proven(6, "six"), anonymous(3, 1))


def test_the_work_does_not_grow_with_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    for conn in range(1, 2_001):
        register(registry, peer(conn), AGENT)
        register(registry, peer(conn), CONNECTOR)
    made = 0
    original = Target.__init__

    def counted(self: Target, conn: ConnectionId, rank: int, key: int) -> None:
        nonlocal made
        made += 1
        original(self, conn, rank, key)

    monkeypatch.setattr(Target, "__init__", counted)
    register(registry, peer(3_000), CONNECTOR)
    registry.close(ConnectionId(3_000))
    registry.close(ConnectionId(1))
    assert 0 < made <= 3 * 16
