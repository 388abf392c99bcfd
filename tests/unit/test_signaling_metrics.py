"""Each metric of signaling moves with its event, and no other one does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.unit.signaling import AGENT, CONNECTOR, STRANGER, answer, host, offer, route, started

from intermediate_server.admin.signaling_metrics import signaling_metrics
from intermediate_server.errors import WireError
from intermediate_server.signaling import Book, Limits, Outcome, Reason, Settings
from intermediate_server.types import Role
from intermediate_server.wire.signaling import PunchingResult, SignalingError, StartPunching

Values = dict[str, float]


def rendered(book: Book) -> Values:
    """Every sample as Prometheus writes it."""
    return {
        sample.name + "".join(f" {label}={text}" for label, text in sample.labels.items()): sample.value
        for family in signaling_metrics(book.totals, book.states)
        for sample in family.samples
    }


def moved(book: Book, event: Callable[[], object]) -> Values:
    """The samples that an event moves, without the prefix of their names, and by how much."""
    before = rendered(book)
    event()
    moved = {name: round(value - before.get(name, 0), 6) for name, value in rendered(book).items()}
    return {name.removeprefix("ztna_"): by for name, by in moved.items() if by}


def test_an_offer_that_is_forwarded() -> None:
    book = Book()
    assert moved(book, lambda: route(book, offer(book))) == {
        "signaling_sessions_total": 1,
        "signaling_frames_total direction=received message=offer": 1,
        "signaling_frames_total direction=sent message=offer": 1,
        "signaling_sessions state=offered": 1,
        "candidates_total action=passed kind=srflx": 1,
    }


def test_an_offer_whose_route_is_looked_up() -> None:
    book = Book()
    assert moved(book, lambda: offer(book)) == {
        "signaling_sessions_total": 1,
        "signaling_frames_total direction=received message=offer": 1,
        "signaling_sessions state=routing": 1,
    }


def test_an_answer_that_starts_both() -> None:
    book = Book()
    route(book, offer(book, now=1.0))
    bounds = ("0.5", "1.0", "2.0", "5.0", "+Inf")
    assert moved(book, lambda: answer(book, now=1.3)) == {
        "signaling_frames_total direction=received message=answer": 1,
        "signaling_frames_total direction=sent message=start": 2,
        "signaling_sessions state=offered": -1,
        "signaling_sessions state=started": 1,
        "signaling_sessions state=introduced": 1,
        "candidates_total action=passed kind=srflx": 1,
        **{f"signaling_start_seconds_bucket le={bound}": 1 for bound in bounds},
        "signaling_start_seconds_count": 1,
        "signaling_start_seconds_sum": 0.3,
    }


def test_what_happens_to_candidates() -> None:
    book = Book()
    listed = (host("0.0.0.0"), host("10.0.0.1"), host("198.51.100.9"))
    only = moved(book, lambda: route(book, offer(book, candidates=listed)))
    assert {name: by for name, by in only.items() if name.startswith("candidates")} == {
        "candidates_total action=passed kind=host": 2,
        "candidates_total action=replaced kind=host": 1,
        "candidates_total action=removed kind=host": 1,
        "candidates_total action=added kind=srflx": 1,
    }


def reported(book: Book, *, success: bool) -> Values:
    """What the last of two reports moves."""
    started(book)
    book.result(CONNECTOR.conn, PunchingResult(42, success), 0.0)
    return moved(book, lambda: book.result(AGENT.conn, PunchingResult(42, success), 0.0))


REPORT = {
    "signaling_frames_total direction=received message=result": 1,
    "signaling_frames_total direction=sent message=result": 1,
    "signaling_sessions state=started": -1,
}


def test_a_direct_path() -> None:
    assert reported(Book(), success=True) == REPORT | {"signaling_results_total result=direct": 1}


def test_a_path_that_was_not_found() -> None:
    assert reported(Book(), success=False) == REPORT | {
        "signaling_results_total result=failed": 1,
        "signaling_failures_total reason=nothing_arrived": 1,
    }


def test_a_session_without_reports() -> None:
    book = Book()
    started(book)
    assert moved(book, lambda: book.expire(15.0)) == {
        "signaling_sessions state=started": -1,
        "signaling_results_total result=unreported": 1,
    }


def test_an_offer_without_an_answer() -> None:
    book = Book()
    route(book, offer(book))
    assert moved(book, lambda: book.expire(5.0)) == {
        "signaling_sessions state=offered": -1,
        "signaling_results_total result=unanswered": 1,
        "signaling_failures_total reason=unanswered": 1,
    }


def test_a_refused_offer() -> None:
    book = Book()
    assert moved(book, lambda: offer(book, allowed=False)) == {
        "signaling_frames_total direction=received message=offer": 1,
        "signaling_frames_total direction=sent message=error": 1,
        "signaling_results_total result=refused": 1,
        "signaling_failures_total reason=policy": 1,
    }


def test_an_introduction_that_is_revoked() -> None:
    book = Book()
    started(book)
    assert moved(book, lambda: book.revoked(AGENT.conn, Role.AGENT, "web", "policy", 1.0)) == {
        "signaling_sessions state=started": -1,
        "signaling_sessions state=introduced": -1,
        "signaling_results_total result=failed": 1,
        "signaling_failures_total reason=revoked": 1,
    }


def test_an_error_that_is_passed_on() -> None:
    book = Book()
    route(book, offer(book))
    assert moved(book, lambda: book.error(CONNECTOR.conn, SignalingError(42, 0, ""), 0.0)) == {
        "signaling_frames_total direction=received message=error": 1,
        "signaling_frames_total direction=sent message=error": 1,
        "signaling_sessions state=offered": -1,
        "signaling_results_total result=failed": 1,
        "signaling_failures_total reason=ended": 1,
    }


def nothing(book: Book) -> None:
    """Prepare nothing."""


@pytest.mark.parametrize(
    ("prepare", "event", "reason", "others"),
    [
        (nothing, lambda b: b.invalid(AGENT.conn, WireError("cut off"), 0.0), "malformed", {"malformed"}),
        (nothing, lambda b: b.result(STRANGER.conn, PunchingResult(42, True), 0.0), "not_owner", {"result"}),
        (nothing, lambda b: b.error(STRANGER.conn, SignalingError(42, 0, ""), 0.0), "not_owner", {"error"}),
        (nothing, answer, "no_session", {"answer"}),
        (offer, offer, "repeated", {"offer"}),
        (nothing, lambda b: b.start(AGENT.conn, StartPunching(42, 0, ()), 0.0), "unexpected", {"start"}),
        (offer, lambda b: offer(b, session=1), "offer_rate", {"offer"}),
        (nothing, lambda b: b.peer_not_reading(AGENT.conn, 0.0), "peer_not_reading", set()),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_a_frame_without_effect(
    prepare: Callable[[Book], object], event: Callable[[Book], object], reason: str, others: set[str]
) -> None:
    book = Book(Settings(limits=Limits(offers_at_once=1)) if reason == "offer_rate" else None)
    prepare(book)
    by = moved(book, lambda: event(book))
    assert {name for name in by if "dropped" in name} == {f"signaling_dropped_total reason={reason}"}
    assert by[f"signaling_dropped_total reason={reason}"] == 1
    assert {name.rpartition("=")[2] for name in by if "direction=received" in name} == others


def test_the_end_of_a_stream() -> None:
    book = Book()

    def ended() -> None:
        book.totals.streams["frame_timeout"] += 1

    assert moved(book, ended) == {"signaling_streams_ended_total end=frame_timeout": 1}


def test_every_result_and_reason_is_there_from_the_start() -> None:
    names = set(rendered(Book()))
    assert {f"ztna_signaling_results_total result={outcome}" for outcome in Outcome} <= names
    assert {f"ztna_signaling_failures_total reason={reason}" for reason in Reason} <= names
