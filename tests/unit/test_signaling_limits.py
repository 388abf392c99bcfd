"""The book: each of its limits."""

from __future__ import annotations

from tests.unit.signaling import (
    AGENT,
    STRANGER,
    answer,
    error,
    of,
    offer,
    other_agent,
    record,
    route,
)

from intermediate_server.signaling import (
    Book,
    Ended,
    Introduce,
    Limits,
    LookUpRoute,
    Reason,
    Send,
    Settings,
    State,
)
from intermediate_server.wire.signaling import (
    SignalingError,
)


def test_a_connection_offers_eight_times_at_once_and_once_a_second() -> None:
    book = Book(Settings(limits=Limits(sessions_per_agent=100)))
    for session in range(8):
        assert of(offer(book, session=session), LookUpRoute)
    actions = offer(book, session=8, now=0.9)
    assert error(actions) == (AGENT.conn, 8, 6)
    assert not of(actions, Ended), "records of others would be pushed out"
    assert book.totals.dropped == {"offer_rate": 1}
    assert book.totals.failures == {Reason.BUSY: 1}
    assert of(offer(book, session=9, now=1.0), LookUpRoute)
    assert error(offer(book, session=10, now=1.0)) == (AGENT.conn, 10, 6)
    assert of(offer(book, STRANGER, session=8), LookUpRoute), "others have a rate of their own"


def test_eight_sessions_of_an_agent_are_open_at_once() -> None:
    book = Book()
    for session in range(8):
        route(book, offer(book, session=session))
    actions = offer(book, session=8, now=1.0)
    assert error(actions) == (AGENT.conn, 8, 6)
    assert (record(actions).reason, record(actions).detail) == (Reason.BUSY, "8 open sessions of the agent")
    book.error(AGENT.conn, SignalingError(0, 0, ""), 1.0)
    assert of(offer(book, session=8, now=2.0), LookUpRoute)


def test_sixty_four_sessions_of_a_connector_are_open_at_once() -> None:
    book = Book()
    for number in range(64):
        assert of(route(book, offer(book, other_agent(number))), Send)
    actions = route(book, offer(book))
    assert error(actions) == (AGENT.conn, 42, 6)
    assert record(actions).detail == "64 open sessions of the connector"


def test_so_many_sessions_are_open_in_all() -> None:
    book = Book(Settings(limits=Limits(sessions=2)))
    for number in range(2):
        offer(book, other_agent(number))
    assert record(offer(book)).detail == "2 open sessions of the relay"
    book.expire(5.0)
    assert of(offer(book, now=5.0), LookUpRoute)


def test_sixty_four_agents_are_introduced_to_a_connector() -> None:
    book = Book()
    for number in range(64):
        # One by one, so that nothing but the introductions stays.
        now = number * 20.0
        route(book, offer(book, other_agent(number), now=now), now=now)
        assert of(answer(book, now=now), Introduce)
        book.expire(now + 15.0)
    again = 64 * 20.0
    assert error(route(book, offer(book, now=again), now=again)) == (AGENT.conn, 42, 6)
    assert book.states[State.INTRODUCED] == 64
    route(book, offer(book, other_agent(0), session=1, now=again), now=again)
    assert of(answer(book, session=1, now=again), Send), "who is introduced may offer again"


def test_introductions_are_bounded_where_answers_come_together() -> None:
    book = Book(Settings(limits=Limits(introduced_per_connector=1)))
    route(book, offer(book, session=1))
    route(book, offer(book, STRANGER, session=2))
    assert of(answer(book, session=1), Introduce)
    actions = answer(book, session=2)
    assert error(actions) == (STRANGER.conn, 2, 6)
    assert record(actions).reason is Reason.BUSY


def test_only_the_newest_records_are_kept() -> None:
    book = Book(Settings(limits=Limits(records=2)))
    for session in range(3):
        offer(book, session=session, registered=False)
    assert [one.session for one in book.records] == [1, 2]
    book.use(Settings(limits=Limits(records=1)), 0.0)
    assert [one.session for one in book.records] == [2]


def test_an_offer_that_waited_too_long_is_refused_without_a_record() -> None:
    book = Book()
    assert error(book.busy(AGENT.conn, 42)) == (AGENT.conn, 42, 6)
    assert not book.records
    assert book.totals.failures == {Reason.BUSY: 1}
