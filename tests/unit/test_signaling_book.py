"""The book: each message, each timer and each limit by an example."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.signaling import (
    AGENT,
    CONNECTOR,
    STRANGER,
    address,
    answer,
    error,
    host,
    observed,
    of,
    offer,
    record,
    route,
    sent,
    started,
)

from intermediate_server.errors import TooManyCandidates, WireError
from intermediate_server.signaling import (
    Book,
    Ended,
    EndSignaling,
    Introduce,
    LookUpRoute,
    Outcome,
    Reason,
    Send,
    Settings,
    Started,
    State,
)
from intermediate_server.types import ConnectionId, Peer
from intermediate_server.wire import signaling as wire
from intermediate_server.wire.signaling import (
    Candidate,
    CandidateKind,
    CandidateOffer,
    PunchingResult,
    SignalingError,
    StartPunching,
)

# From offer to start


def test_a_session_goes_from_the_offer_to_the_start_of_both() -> None:
    book = Book()
    assert offer(book, now=1.0) == [LookUpRoute(1, AGENT.conn, "web")]
    (forwarded,) = book.route_found(1, CONNECTOR, None, 1.1)
    assert forwarded == Send(CONNECTOR.conn, wire.encode(CandidateOffer(42, "web", (observed(AGENT),))), False)
    introduce, *_ = actions = answer(book, candidates=(host("0.0.0.0", 7_000),), now=1.3)
    assert introduce == Introduce(AGENT.conn, CONNECTOR.conn)
    assert list(sent(actions)) == [
        (CONNECTOR.conn, StartPunching(42, 100, (observed(AGENT),)), False),
        (
            AGENT.conn,
            StartPunching(42, 100, (host("198.51.100.2", 7_000, foundation="host_0.0.0.0"), observed(CONNECTOR))),
            True,
        ),
    ]
    assert [type(action) for action in actions] == [Introduce, Send, Send, Started]
    assert book.states == {State.ROUTING: 0, State.OFFERED: 0, State.STARTED: 1, State.INTRODUCED: 1}
    assert book.totals.sessions == 1
    assert book.totals.start_counts[3] == 1  # 0.3 s
    assert book.totals.start_seconds == pytest.approx(0.3)


def test_an_offer_that_needs_no_change_goes_on_byte_for_byte_with_what_trails() -> None:
    book = Book()
    (forwarded,) = route(book, offer(book, trailing=b"\xff\0"))
    assert isinstance(forwarded, Send)
    assert forwarded.payload == wire.encode(CandidateOffer(42, "web", (observed(AGENT),))) + b"\xff\0"


def test_a_large_offer_goes_on_without_what_trails() -> None:
    book = Book()
    (forwarded,) = route(book, offer(book, trailing=bytes(8_192)))
    assert isinstance(forwarded, Send)
    assert forwarded.payload == wire.encode(CandidateOffer(42, "web", (observed(AGENT),)))


def test_the_largest_frame_for_a_peer_is_small() -> None:
    def largest(net: str) -> tuple[Candidate, ...]:
        related = address(f"{net}::ffff")
        return tuple(replace(host(f"{net}::{n + 1:x}", foundation="x" * 64), related=related) for n in range(64))

    book = Book(Settings(private_candidates="always"))
    actions = route(book, offer(book, service="s" * 255, candidates=largest("fc00")))
    actions += answer(book, candidates=largest("fd00"))
    frames = [len(send.payload) for send in of(actions, Send)]
    assert len(frames) == 3
    assert max(frames) < 8_192


def test_a_taken_id_is_replaced_towards_the_connector_and_mapped_back() -> None:
    drawn = iter([42, 77])
    book = Book(random_id=lambda: next(drawn))
    route(book, offer(book, trailing=b"\xff"))
    second = Peer(ConnectionId(9), address("198.51.100.9"), None)
    (forwarded,) = route(book, offer(book, second, trailing=b"\xff"))
    assert isinstance(forwarded, Send)
    assert forwarded.payload == wire.encode(CandidateOffer(77, "web", (observed(second),))) + b"\xff"

    starts = {conn: message for conn, message, _ in sent(answer(book, session=77))}
    assert starts[second.conn] == StartPunching(42, 100, (observed(CONNECTOR),))
    assert starts[CONNECTOR.conn] == StartPunching(77, 100, (observed(second),))
    starts = {conn: message for conn, message, _ in sent(answer(book, session=42))}
    assert starts[AGENT.conn] == StartPunching(42, 100, (observed(CONNECTOR),))

    ((conn, passed_on, _),) = sent(book.result(second.conn, PunchingResult(42, False), 0.0))
    assert (conn, passed_on) == (CONNECTOR.conn, PunchingResult(77, False))
    ((conn, passed_on, _),) = sent(book.error(CONNECTOR.conn, SignalingError(77, 0, ""), 0.0))
    assert (conn, passed_on) == (second.conn, SignalingError(42, 0, ""))


def test_candidates_are_edited_before_the_other_side_is_told() -> None:
    book = Book(Settings(relay_addresses=frozenset({address("203.0.113.1", 4_433)})))
    listed = (host("203.0.113.1", 4_433), host("192.168.1.1"), observed(AGENT))
    ((_, forwarded, _),) = sent(route(book, offer(book, candidates=listed)))
    assert forwarded == CandidateOffer(42, "web", (observed(AGENT),))
    assert book.totals.candidates == {("removed", "host"): 2, ("passed", "srflx"): 1}
    book.use(Settings(private_candidates="always"), 0.0)
    ((_, forwarded, _),) = sent(route(book, offer(book, session=43, candidates=listed)))
    assert forwarded == CandidateOffer(43, "web", listed)


# Refused offers


def test_nobody_learns_from_an_error_whether_a_service_exists() -> None:
    answers = []
    for registered in (False, True):
        book = Book()
        actions = offer(book, registered=registered)
        if registered:
            actions = route(book, actions, None)
        assert error(actions) == (AGENT.conn, 42, 2)
        answers += of(actions, Send)
        expected = Reason.NO_CONNECTOR if registered else Reason.NOT_REGISTERED
        assert (record(actions).outcome, record(actions).reason) == (Outcome.REFUSED, expected)
    first, second = answers
    assert first == second


@pytest.mark.parametrize(
    ("settings", "changes", "code", "reason"),
    [
        (Settings(), {"service": ""}, 5, Reason.INVALID),
        (Settings(), {"allowed": False}, 6, Reason.POLICY),
        (Settings(direct="off"), {}, 6, Reason.OFF),
        (Settings(direct="own"), {}, 6, Reason.OFF),
        (Settings(), {"registered": False, "allowed": False}, 2, Reason.NOT_REGISTERED),
    ],
)
def test_an_offer_is_refused_with_a_reason(
    settings: Settings, changes: dict[str, object], code: int, reason: Reason
) -> None:
    book = Book(settings)
    actions = offer(book, **changes)  # type: ignore[arg-type]
    assert error(actions) == (AGENT.conn, 42, code)
    assert record(actions).reason is reason
    assert list(book.records) == [record(actions)]
    assert book.totals.results == {Outcome.REFUSED: 1}
    assert book.totals.failures == {reason: 1}
    assert book.totals.sessions == 0


@pytest.mark.parametrize(
    ("conflict", "reason"),
    [("translated", Reason.ADDRESS), ("ambiguous", Reason.ADDRESS), ("learned", Reason.LEARNED)],
)
def test_a_pair_whose_answers_would_go_astray_is_not_introduced(conflict: str, reason: Reason) -> None:
    book = Book()
    actions = route(book, offer(book), conflict=conflict)
    assert error(actions) == (AGENT.conn, 42, 6)
    assert (record(actions).reason, record(actions).detail) == (reason, conflict)


def test_a_connection_is_not_introduced_to_itself() -> None:
    book = Book()
    assert error(route(book, offer(book), AGENT)) == (AGENT.conn, 42, 2)


@pytest.mark.parametrize("first", [AGENT, CONNECTOR], ids=["its own", "towards it"])
def test_an_offer_with_an_id_that_is_live_on_its_connection_is_ignored(first: Peer) -> None:
    book = Book()
    route(book, offer(book, first), AGENT if first is CONNECTOR else CONNECTOR)
    assert offer(book, AGENT, service="db") == []
    assert book.totals.dropped == {"repeated": 1}
    assert offer(book, STRANGER) != [], "others may have the same id"


# Answers


@pytest.mark.parametrize("who", [AGENT, STRANGER], ids=["the agent", "a stranger"])
def test_only_the_connector_that_was_asked_answers(who: Peer) -> None:
    book = Book()
    route(book, offer(book))
    assert error(answer(book, who)) == (who.conn, 42, 3)
    assert book.totals.dropped == {"no_session": 1}
    assert of(answer(book), Introduce)


def test_a_connector_answers_once_and_in_time() -> None:
    book = Book()
    started(book)
    assert error(answer(book)) == (CONNECTOR.conn, 42, 3)
    route(book, offer(book, session=43))
    book.expire(5.0)
    assert error(answer(book, session=43, now=5.0)) == (CONNECTOR.conn, 43, 3)
    assert error(answer(book, session=44)) == (CONNECTOR.conn, 44, 3)


def test_an_answer_before_the_route_is_none() -> None:
    book = Book()
    offer(book)
    assert error(answer(book)) == (CONNECTOR.conn, 42, 3)


@pytest.mark.parametrize("loopback", [False, True])
def test_a_connector_without_an_address_of_use_ends_the_session(loopback: bool) -> None:
    book = Book()
    connector = Peer(CONNECTOR.conn, address("127.0.0.1"), None) if loopback else CONNECTOR
    route(book, offer(book), connector)
    listed: tuple[Candidate, ...] = (host("127.0.0.1"),) if loopback else ()
    actions = answer(book, candidates=listed)
    assert error(actions) == (AGENT.conn, 42, 6)
    assert (record(actions).outcome, record(actions).reason) == (Outcome.FAILED, Reason.NO_CANDIDATES)
    assert not of(actions, Introduce)


# Results and errors


def test_results_of_both_end_the_session_and_are_passed_on() -> None:
    book = Book()
    started(book, now=1.0)
    working = CONNECTOR.address
    assert list(sent(book.result(AGENT.conn, PunchingResult(42, True, working), 2.0))) == [
        (CONNECTOR.conn, PunchingResult(42, True, working), False)
    ]
    actions = book.result(CONNECTOR.conn, PunchingResult(42, False), 2.5)
    assert list(sent(actions)) == [(AGENT.conn, PunchingResult(42, False), True)]
    ended = record(actions)
    assert (ended.outcome, ended.reason, ended.ended_ms) == (Outcome.DIRECT, Reason.DIRECT, 1_500)
    assert (ended.working, ended.working_kind) == (working, CandidateKind.SERVER_REFLEXIVE)
    assert ended.connector is not None
    assert (ended.agent.report, ended.connector.report) == (True, False)
    assert book.totals.results == {Outcome.DIRECT: 1}
    assert not book.totals.failures


def test_a_result_counts_once_and_after_the_start_only() -> None:
    book = Book()
    route(book, offer(book))
    assert book.result(AGENT.conn, PunchingResult(42, True), 0.0) == []
    answer(book)
    book.result(AGENT.conn, PunchingResult(42, False), 0.0)
    assert book.result(AGENT.conn, PunchingResult(42, True), 0.0) == []
    assert book.totals.dropped == {"unexpected": 2}
    assert record(book.expire(15.0)).reason is Reason.NOTHING_ARRIVED


def test_strangers_neither_report_nor_end_a_session() -> None:
    book = Book()
    started(book)
    for session in (None, 42, 43):
        assert book.error(STRANGER.conn, SignalingError(session, 6, "mine"), 0.0) == []
    assert book.error(AGENT.conn, SignalingError(None, 6, "which?"), 0.0) == []
    assert book.result(STRANGER.conn, PunchingResult(42, True), 0.0) == []
    assert book.totals.dropped == {"not_owner": 5}
    assert book.states[State.STARTED] == 1


@pytest.mark.parametrize("by", [AGENT, CONNECTOR], ids=["agent", "connector"])
def test_an_error_ends_the_session_and_is_passed_on_printable(by: Peer) -> None:
    book = Book()
    route(book, offer(book))
    actions = book.error(by.conn, SignalingError(42, 9, "no\nway" + "x" * 1_000), 1.0)
    to = CONNECTOR if by is AGENT else AGENT
    assert list(sent(actions)) == [
        (to.conn, SignalingError(42, 9, ("no?way" + "x" * 1_000)[:256]), by is CONNECTOR),
    ]
    assert record(actions).reason is Reason.ENDED
    assert record(actions).detail.startswith("agent" if by is AGENT else "connector")
    assert book.next_expiry() is None


def test_an_agent_may_end_a_session_before_its_route_is_known() -> None:
    book = Book()
    offer(book)
    assert list(sent(book.error(AGENT.conn, SignalingError(42, 0, ""), 0.0))) == []
    assert book.route_found(1, CONNECTOR, None, 0.0) == []


def test_a_peer_that_says_start_is_ignored() -> None:
    book = Book()
    started(book)
    assert book.start(AGENT.conn, StartPunching(42, 0, ()), 0.0) == []
    assert book.totals.dropped == {"unexpected": 1}


# Malformed messages


def test_the_17th_malformed_message_ends_the_signaling() -> None:
    book = Book()
    for _ in range(16):
        assert book.invalid(AGENT.conn, WireError("cut off"), 0.0) == []
    assert book.invalid(STRANGER.conn, WireError("cut off"), 0.0) == []
    assert book.invalid(AGENT.conn, WireError("cut off"), 0.0) == [EndSignaling(AGENT.conn)]
    assert book.totals.dropped == {"malformed": 18}
    assert book.totals.frames == {("received", "malformed"): 18}


@pytest.mark.parametrize("is_offer", [True, False], ids=["offer", "answer"])
def test_too_many_candidates_are_answered(is_offer: bool) -> None:
    book = Book()
    actions = book.invalid(AGENT.conn, TooManyCandidates("65 candidates", session=7, offer=is_offer), 0.0)
    assert list(sent(actions)) == [(AGENT.conn, SignalingError(7, 5, "65 candidates"), is_offer)]


# Time


def test_sessions_expire_in_the_order_of_their_offers() -> None:
    book = Book()
    offer(book, session=1, now=1.0)  # no route
    route(book, offer(book, session=2, now=2.0), now=2.0)  # no answer
    started(book, session=3, now=3.0)  # no result
    assert book.next_expiry() == 6.0
    assert book.expire(5.9) == []
    actions = book.expire(6.0)
    assert error(actions) == (AGENT.conn, 1, 6)
    assert (record(actions).reason, record(actions).outcome) == (Reason.BUSY, Outcome.REFUSED)
    assert book.next_expiry() == 7.0
    (only,) = book.expire(7.0)
    assert isinstance(only, Ended), "clients in the field are told nothing"
    assert (only.record.outcome, only.record.reason) == (Outcome.UNANSWERED, Reason.UNANSWERED)
    assert only.record.connector is not None
    assert book.next_expiry() == 18.0
    (only,) = book.expire(100.0)
    assert isinstance(only, Ended)
    assert (only.record.outcome, only.record.reason) == (Outcome.UNREPORTED, Reason.UNREPORTED)
    assert book.next_expiry() is None
    assert book.totals.failures == {Reason.BUSY: 1, Reason.UNANSWERED: 1}
    assert book.states[State.INTRODUCED] == 1, "the pair outlives its session"


def test_a_record_says_when_and_how_fast() -> None:
    book = Book(wall_clock=lambda: 1_790_000_000.5)
    route(book, offer(book, now=10.0), now=10.25)
    answer(book, now=10.5)
    ended = record(book.expire(25.0))
    assert (ended.began, ended.answered_ms, ended.started_ms, ended.ended_ms) == (1_790_000_000.5, 500, 500, 15_000)
    assert (ended.agent.identity, ended.agent.address, ended.agent.kind) == ("CN=laptop", AGENT.address, "v1")


def test_a_pair_without_a_common_family_is_explained() -> None:
    book = Book()
    connector = Peer(CONNECTOR.conn, address("2001:db8::2"), None)
    route(book, offer(book), connector)
    answer(book, connector)
    assert record(book.expire(15.0)).reason is Reason.NO_COMMON_FAMILY
