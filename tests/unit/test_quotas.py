"""Quotas: who shares a limiter, which rates count, and who is one connection too many."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.registering import identity, peer

from intermediate_server.access.quotas import Quotas
from intermediate_server.access.usage import MonthlyUsage
from intermediate_server.engine import Command
from intermediate_server.policy import UNLIMITED, Limits
from intermediate_server.types import ConnectionId, Peer


class Told:
    """Commands as tuples, with limiters by the order in which they appear: what number one has means nothing."""

    def __init__(self) -> None:
        self.limiters: list[int] = []

    def __call__(self, commands: list[Command]) -> list[tuple[int, int, str, int, int]]:
        out = []
        for command in commands:
            assert isinstance(command, Command.SetLimits)
            if command.limiter not in self.limiters:
                self.limiters.append(command.limiter)
            limiter = self.limiters.index(command.limiter) + 1
            rates = command.bytes_per_second, command.packets_per_second
            out.append((command.conn, limiter, command.identity_class, *rates))
        return out


@pytest.fixture
def told() -> Told:
    return Told()


def limiter_of(quotas: Quotas, one: Peer) -> int:
    (command,) = quotas.hold(one, UNLIMITED)
    assert isinstance(command, Command.SetLimits)
    return command.limiter


def test_connections_of_one_key_share_a_meter_and_others_do_not(told: Told) -> None:
    quotas = Quotas()
    assert told(quotas.hold(peer(1, "ann"), UNLIMITED)) == [(1, 1, "certificate", 0, 0)]
    assert told(quotas.hold(peer(1, "ann"), UNLIMITED)) == [], "nothing new"
    assert told(quotas.hold(peer(2, "ann"), UNLIMITED)) == [(2, 1, "certificate", 0, 0)]
    assert told(quotas.hold(peer(3, "bob"), UNLIMITED)) == [(3, 2, "certificate", 0, 0)]
    assert told(quotas.hold(peer(4), UNLIMITED)) == [(4, 3, "anonymous", 0, 0)]
    assert told(quotas.hold(peer(5), UNLIMITED)) == [(5, 3, "anonymous", 0, 0)]
    assert told(quotas.hold(peer(6, host="198.51.100.2"), UNLIMITED)) == [(6, 4, "anonymous", 0, 0)]


def test_the_lowest_rates_of_all_registrations_count(told: Told) -> None:
    quotas = Quotas()
    slow, few = Limits(bytes_per_second=1_000), Limits(packets_per_second=10, bytes_per_second=5_000)
    quotas.hold(peer(1, "ann"), UNLIMITED)
    assert told(quotas.hold(peer(1, "ann"), few)) == [(1, 1, "certificate", 5_000, 10)]
    assert told(quotas.hold(peer(2, "ann"), slow)) == [(2, 1, "certificate", 1_000, 10)]
    assert told(quotas.hold(peer(1, "ann"), slow)) == []
    assert told(quotas.revoke(peer(2, "ann"), slow)) == [], "another registration has the same"
    assert told(quotas.revoke(peer(1, "ann"), few)) == [(1, 1, "certificate", 1_000, 0)]
    assert told(quotas.close(ConnectionId(1))) == [(2, 1, "certificate", 0, 0)]
    assert told(quotas.close(ConnectionId(2))) == []
    assert told(quotas.close(ConnectionId(2))) == []
    assert told(quotas.hold(peer(3, "ann"), slow)) == [(3, 1, "certificate", 1_000, 0)], (
        "who comes back has the same limiter"
    )


def test_the_connections_that_came_first_stay() -> None:
    quotas = Quotas()
    two = Limits(connections=2)
    for conn in (1, 2):
        assert quotas.over_limit(peer(conn, "ann"), two) is None
        quotas.hold(peer(conn, "ann"), two)
    over = quotas.over_limit(peer(3, "ann"), two)
    assert over is not None
    assert over.cause == "connections"
    assert quotas.over_limit(peer(1, "ann"), two) is None, "another registration of one that is there"
    assert quotas.over_limit(peer(9, "bob"), two) is None
    one = Limits(connections=1)
    assert quotas.over_limit(peer(1, "ann"), one) is None
    assert quotas.over_limit(peer(2, "ann"), one) is not None
    quotas.revoke(peer(1, "ann"), two)
    assert quotas.over_limit(peer(3, "ann"), two) is None, "one without a registration does not count"
    quotas.close(ConnectionId(2))
    assert quotas.over_limit(peer(3, "ann"), one) is None


def test_a_newer_certificate_gets_one_place_more() -> None:
    quotas = Quotas()
    two = Limits(connections=2)
    for conn in (1, 2):
        quotas.hold(peer(conn, "ann"), two)
    assert quotas.over_limit(peer(3, "ann"), two) is not None, "the certificate that is there already"
    newer = peer(3, "ann", serial=2)
    assert quotas.over_limit(newer, two) is None
    assert not quotas.has_surplus(newer)
    quotas.hold(newer, two)
    assert quotas.has_surplus(newer)
    assert quotas.over_limit(newer, two) is None, "asked again, or for another service"
    assert quotas.over_limit(peer(1, "ann"), two) is None
    assert quotas.over_limit(peer(4, "ann", serial=2), two) is not None, "it is there already"
    assert quotas.over_limit(peer(4, "ann", serial=3), two) is not None, "one at a time"
    quotas.close(ConnectionId(1))
    assert not quotas.has_surplus(newer)
    assert quotas.over_limit(newer, two) is None


def test_anonymous_connections_count_by_source_network() -> None:
    quotas = Quotas()
    one = Limits(connections=1)
    quotas.hold(peer(1), one)
    assert quotas.over_limit(peer(2), one) is not None
    assert quotas.over_limit(peer(3, host="198.51.100.2"), one) is None
    # It moves; the place it took is still its own.
    moved = peer(1, host="203.0.113.1")
    assert quotas.over_limit(moved, one) is None
    assert quotas.hold(moved, one) == []
    quotas.revoke(moved, one)
    quotas.revoke(moved, one)
    assert quotas.over_limit(peer(2), one) is None
    quotas.hold(peer(4, host="2001:db8::1"), one)
    assert quotas.over_limit(peer(5, host="2001:db8:0:ff::2"), one) is not None, "of the same /56"
    assert quotas.over_limit(peer(5, host="2001:db8:0:100::1"), one) is None


@pytest.mark.parametrize("restart", [False, True])
async def test_a_month_is_used_up(tmp_path: Path, restart: bool) -> None:
    usage = MonthlyUsage(tmp_path)
    quotas = Quotas(usage)
    month = Limits(bytes_per_month=1_000)
    ann, bob, nobody = (
        limiter_of(quotas, one) for one in (peer(2, "ann"), peer(5, "bob"), peer(4, host="198.51.100.9"))
    )
    quotas.hold(peer(1, "ann"), month)
    quotas.hold(peer(3, "bob"), month)
    quotas.close(ConnectionId(5))
    assert list(quotas.count([(ann, 400, 500), (bob, 10, 0), (nobody, 10**9, 0), (99, 1, 1)])) == []
    assert quotas.over_limit(peer(1, "ann"), month) is None
    assert list(quotas.count([(ann, 50, 50)])) == [2, 1]
    if restart:
        await usage.save()
        second = MonthlyUsage(tmp_path)
        quotas = Quotas(second)
        await second.aclose()
    over = quotas.over_limit(peer(1, "ann"), month)
    assert over is not None
    assert over.cause == "volume"
    assert quotas.over_limit(peer(1, "ann"), UNLIMITED) is None
    assert quotas.over_limit(peer(3, "bob"), month) is None
    await usage.aclose()


async def test_the_last_report_of_a_meter_counts(tmp_path: Path) -> None:
    usage = MonthlyUsage(tmp_path)
    quotas = Quotas(usage)
    key = identity(key="ann").key_hash.hex()
    limiter = limiter_of(quotas, peer(1, "ann"))
    quotas.close(ConnectionId(1))
    assert list(quotas.count([(limiter, 3, 4)])) == []
    assert usage.used(key) == 7
    assert list(quotas.count([(limiter, 3, 4)])) == []
    assert usage.used(key) == 7, "it has ended"
    quotas.hold(peer(2, "ann"), UNLIMITED)
    quotas.close(ConnectionId(2))
    quotas.hold(peer(3, "ann"), UNLIMITED)
    assert list(quotas.count([(limiter, 1, 0)])) == []
    assert list(quotas.count([(limiter, 1, 0)])) == []
    assert usage.used(key) == 9, "it came back before it was asked after"
    await usage.aclose()


def test_a_limit_of_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Limits(connections=0)
