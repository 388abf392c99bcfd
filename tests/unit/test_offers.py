"""Offers that wait: bounded, and shared fairly by those who make them."""

from __future__ import annotations

import random
from collections import Counter

from intermediate_server.sessions.offers import WAITING, WAITING_EACH, Offer, Offers
from intermediate_server.types import ConnectionId


def offer(owner: str, conn: int, session: int = 0) -> Offer:
    return Offer(ConnectionId(conn), owner, session, b"")


def flood(offers: Offers, owner: str, *, first: int = 1_000) -> None:
    """As many offers as may wait, of as many connections as it takes."""
    for number in range(WAITING):
        assert offers.put(offer(owner, first + number // WAITING_EACH, number)) is None


def taken(offers: Offers, count: int) -> list[tuple[str, int]]:
    found = [offers.take() for _ in range(count)]
    return [(each.owner, each.session) for each in found if each is not None]


def test_owners_are_served_in_turn_and_each_in_its_order() -> None:
    offers = Offers()
    for session in range(3):
        offers.put(offer("a", 1, session))
    offers.put(offer("b", 2, 7))
    offers.put(offer("c", 3, 8))
    assert len(offers) == 5
    assert taken(offers, 6) == [("a", 0), ("b", 7), ("c", 8), ("a", 1), ("a", 2)]
    assert len(offers) == 0


def test_a_flood_of_one_owner_takes_nobodys_place() -> None:
    offers = Offers()
    flood(offers, "a")
    refused = offers.put(offer("b", 1, 1))
    assert refused is not None
    assert (refused.owner, refused.session) == ("a", WAITING - 1), "the newest of who has most"
    assert len(offers) == WAITING
    assert taken(offers, 2) == [("a", 0), ("b", 1)]


def test_where_all_have_their_share_who_comes_is_refused() -> None:
    offers = Offers()
    for number in range(WAITING):
        assert offers.put(offer(str(number), number)) is None
    late = offer("late", 9_999)
    assert offers.put(late) is late
    again = offer("7", 9_998)
    assert offers.put(again) is again


def test_so_many_offers_of_one_connection_wait() -> None:
    offers = Offers()
    for session in range(WAITING_EACH):
        assert offers.put(offer("a", 1, session)) is None
    more = offer("a", 1, 99)
    assert offers.put(more) is more
    assert offers.put(offer("a", 2)) is None, "another connection"
    assert offers.take() == offer("a", 1, 0)
    assert offers.put(more) is None


def test_none_is_lost_and_none_comes_twice() -> None:
    source = random.Random(15)
    offers, waiting = Offers(), Counter[Offer]()
    for session in range(20_000):
        if source.random() < 0.55:
            conn = min(int(source.expovariate(0.02)), 300)
            put = offer(str(conn % 40), conn, session)
            refused = offers.put(put)
            waiting[put] += 1
            if refused is not None:
                waiting[refused] -= 1
        elif (took := offers.take()) is not None:
            waiting[took] -= 1
        assert min(waiting.values(), default=0) >= 0
        waiting = +waiting
        assert len(offers) == waiting.total() <= WAITING
        assert max(Counter(each.conn for each in waiting).values(), default=0) <= WAITING_EACH
