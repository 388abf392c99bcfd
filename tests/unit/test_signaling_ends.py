"""The book: sessions that end with a connection, a registration or a setting."""

from __future__ import annotations

import pytest
from tests.unit.signaling import (
    AGENT,
    CONNECTOR,
    answer,
    error,
    of,
    offer,
    record,
    route,
    sent,
    started,
)

from intermediate_server.signaling import (
    Action,
    Book,
    Ended,
    Introduce,
    LookUpRoute,
    Reason,
    Send,
    Separate,
    Settings,
)
from intermediate_server.types import Role
from intermediate_server.wire.signaling import (
    PunchingResult,
    SignalingError,
)


def end_by(book: Book, what: str) -> list[Action]:
    match what:
        case "agent closed":
            return book.closed(AGENT.conn, 1.0)
        case "connector closed":
            return book.closed(CONNECTOR.conn, 1.0)
        case "agent revoked":
            return book.revoked(AGENT.conn, Role.AGENT, "web", "expired", 1.0)
        case "connector revoked":
            return book.revoked(CONNECTOR.conn, Role.CONNECTOR, "web", "policy", 1.0)
        case "agent stuck":
            return book.peer_not_reading(AGENT.conn, 1.0)
        case "connector stuck":
            return book.peer_not_reading(CONNECTOR.conn, 1.0)
        case "draining":
            return book.refuse_all(Reason.DRAINING, 1.0)
        case "off":
            return book.use(Settings(direct="off"), 1.0)
    raise AssertionError(what)


@pytest.mark.parametrize(
    ("what", "code", "reason"),
    [
        ("agent closed", None, Reason.AGENT_GONE),
        ("connector closed", 2, Reason.CONNECTOR_GONE),
        ("agent revoked", 6, Reason.REVOKED),
        ("connector revoked", 2, Reason.REVOKED),
        ("agent stuck", None, Reason.PEER_NOT_READING),
        ("connector stuck", 6, Reason.PEER_NOT_READING),
        ("draining", 6, Reason.DRAINING),
        ("off", 6, Reason.OFF),
    ],
)
def test_an_offered_session_is_ended(what: str, code: int | None, reason: Reason) -> None:
    book = Book()
    route(book, offer(book))
    actions = end_by(book, what)
    assert record(actions).reason is reason
    assert [(conn, message.code) for conn, message, _ in sent(actions) if isinstance(message, SignalingError)] == (
        [] if code is None else [(AGENT.conn, code)]
    )
    assert book.next_expiry() is None
    assert error(answer(book)) == (CONNECTOR.conn, 42, 3)


@pytest.mark.parametrize(
    ("what", "ended", "separated"),
    [
        ("agent closed", True, True),
        ("connector closed", True, True),
        ("agent revoked", True, True),
        ("connector revoked", True, True),
        ("agent stuck", True, False),
        ("connector stuck", True, False),
        ("draining", False, False),
        ("off", False, False),
    ],
)
def test_a_started_session_and_its_introduction_are_ended(what: str, ended: bool, separated: bool) -> None:
    book = Book()
    started(book)
    actions = end_by(book, what)
    assert bool(of(actions, Ended)) == ended
    assert of(actions, Separate) == ([Separate(AGENT.conn, CONNECTOR.conn)] if separated else [])
    assert not of(actions, Send)
    assert len(actions) == ended + separated


def test_a_pair_is_introduced_once_for_all_its_services() -> None:
    book = Book()
    assert of(started(book, session=1, service="web"), Introduce)
    assert not of(started(book, session=2, service="db"), Introduce)
    assert not of(started(book, session=3, service="web"), Introduce)
    book.expire(15.0)
    assert book.revoked(CONNECTOR.conn, Role.CONNECTOR, "web", "policy", 20.0) == []
    assert book.revoked(CONNECTOR.conn, Role.AGENT, "db", "policy", 20.0) == []
    assert book.revoked(AGENT.conn, Role.AGENT, "db", "policy", 20.0) == [Separate(AGENT.conn, CONNECTOR.conn)]
    assert book.closed(AGENT.conn, 20.0) == []


def test_only_the_sessions_of_the_revoked_service_end() -> None:
    book = Book()
    route(book, offer(book, session=1, service="web"))
    route(book, offer(book, session=2, service="db"))
    assert [one.session for one in (record(book.revoked(AGENT.conn, Role.AGENT, "db", "policy", 0.0)),)] == [2]
    assert of(answer(book, session=1), Introduce)


def test_a_draining_relay_takes_no_offers_any_more() -> None:
    book = Book()
    book.refuse_all(Reason.DRAINING, 0.0)
    actions = offer(book)
    assert error(actions) == (AGENT.conn, 42, 6)
    assert record(actions).reason is Reason.DRAINING


def test_direct_paths_are_switched_on_again() -> None:
    book = Book(Settings(direct="off"))
    assert not of(offer(book), LookUpRoute)
    assert book.use(Settings(), 0.0) == []
    assert of(offer(book), LookUpRoute)


def test_a_route_for_a_session_that_has_ended_leads_nowhere() -> None:
    book = Book()
    look_up = offer(book)
    book.closed(AGENT.conn, 0.0)
    assert route(book, look_up) == []
    assert book.route_found(99, CONNECTOR, None, 0.0) == []


def test_frames_are_counted_both_ways() -> None:
    book = Book()
    started(book)
    book.result(AGENT.conn, PunchingResult(42, True), 0.0)
    book.error(AGENT.conn, SignalingError(42, 0, ""), 0.0)
    assert book.totals.frames == {
        ("received", "offer"): 1,
        ("sent", "offer"): 1,
        ("received", "answer"): 1,
        ("sent", "start"): 2,
        ("received", "result"): 1,
        ("sent", "result"): 1,
        ("received", "error"): 1,
        ("sent", "error"): 1,
    }
