"""Random histories of registrations against a model that recomputes everything from the list of live ones."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.registering import peer

from intermediate_server.access.quotas import Quotas
from intermediate_server.engine import Command
from intermediate_server.policy import UNLIMITED, Limits
from intermediate_server.types import ConnectionId, Peer

KEYS = (None, None, "one", "two")
LIMITS = (
    UNLIMITED,
    Limits(bytes_per_second=5),
    Limits(bytes_per_second=9, packets_per_second=3),
    Limits(packets_per_second=7, connections=1),
    Limits(connections=2),
)
CONNECTIONS = 6


def holder(conn: int) -> Peer:
    """One of few holders of keys, or somebody anonymous at one of few hosts."""
    return peer(conn, KEYS[conn % len(KEYS)], host=f"198.51.100.{conn % 2}")


def quota_of(conn: int) -> object:
    return KEYS[conn % len(KEYS)] or str(holder(conn).address.host)


@dataclass
class Engine:
    """What the engine makes of the commands: the limiter of each connection, the rates of each limiter."""

    limiters: dict[int, int]
    rates: dict[int, tuple[int, int]]
    first: dict[object, int]
    """The limiter that each quota had first."""

    def apply(self, commands: list[Command]) -> None:
        for command in commands:
            assert isinstance(command, Command.SetLimits)
            self.limiters[command.conn] = command.limiter
            assert self.first.setdefault(quota_of(command.conn), command.limiter) == command.limiter
            self.rates[command.limiter] = (command.bytes_per_second, command.packets_per_second)


def lowest(limits: list[Limits]) -> tuple[int, int]:
    return (
        min((item.bytes_per_second for item in limits if item.bytes_per_second), default=0),
        min((item.packets_per_second for item in limits if item.packets_per_second), default=0),
    )


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["hold", "hold", "release", "close"]),
        st.integers(0, CONNECTIONS - 1),
        st.sampled_from(LIMITS),
    ),
    max_size=60,
)


@given(STEPS)
def test_meters_rates_and_places_follow_the_live_registrations(steps: list[tuple[str, int, Limits]]) -> None:
    quotas, engine = Quotas(), Engine({}, {}, {})
    live: list[tuple[int, Limits]] = []
    open_connections: set[int] = set()
    order: dict[object, list[int]] = {}
    for step, conn, limits in steps:
        held = [item for item in live if item[0] == conn]
        if step == "hold":
            engine.apply(quotas.hold(holder(conn), limits))
            live.append((conn, limits))
            open_connections.add(conn)
            if not held:
                order.setdefault(quota_of(conn), []).append(conn)
        elif step == "release" and held:
            live.remove(held[0])
            engine.apply(quotas.revoke(holder(conn), held[0][1]))
            if len(held) == 1:
                order[quota_of(conn)].remove(conn)
        elif step == "close":
            engine.apply(quotas.close(ConnectionId(conn)))
            live = [item for item in live if item[0] != conn]
            open_connections.discard(conn)
            engine.limiters.pop(conn, None)
            if held:
                order[quota_of(conn)].remove(conn)
        for one in open_connections:
            mine = [item for other, item in live if quota_of(other) == quota_of(one)]
            assert engine.rates[engine.limiters[one]] == lowest(mine)
            for two in open_connections:
                same = engine.limiters[one] == engine.limiters[two]
                assert same == (quota_of(one) == quota_of(two))
        for one in range(CONNECTIONS):
            holders = order.get(quota_of(one), [])
            for most in (1, 2):
                over = quotas.over_limit(holder(one), Limits(connections=most))
                expected = one not in holders[:most] and len(holders) >= most
                assert (over is not None) == expected
    for conn in range(CONNECTIONS):
        quotas.close(ConnectionId(conn))
    assert not (quotas._quotas or quotas._of)
