"""What is kept of an offer that waits."""

from __future__ import annotations

import pytest
from tests.unit.signaling import AGENT, error, host, of, offer, record, route

from intermediate_server.signaling import Book, Reason, Send, bounded
from intermediate_server.signaling.bounds import MAX_UNCHANGED_BYTES
from intermediate_server.wire import signaling as wire
from intermediate_server.wire.signaling import MAX_CANDIDATES, MAX_FRAME_BYTES, CandidateOffer

LIST = (host("198.51.100.9"),)


def kept(message: CandidateOffer, trailing: bytes = b"") -> bytes:
    payload = wire.encode(message) + trailing
    decoded = wire.decode(payload)
    assert isinstance(decoded, CandidateOffer)
    return bounded(decoded, payload)


def test_a_small_offer_is_kept_byte_for_byte() -> None:
    offer = CandidateOffer(1, "web", LIST)
    trailing = bytes(MAX_UNCHANGED_BYTES - len(wire.encode(offer)))
    assert kept(offer, trailing) == wire.encode(offer) + trailing
    assert kept(offer, trailing + b"x") == wire.encode(offer)


@pytest.mark.parametrize(
    "message",
    [
        CandidateOffer(1, "s" * 60_000, LIST),
        CandidateOffer(1, "\U0001f600" * 15_000, LIST),
        CandidateOffer(1, "web", (host("198.51.100.9", foundation="f" * 60_000),)),
        CandidateOffer(1, "s" * 9_000, tuple(host("fd00::1", n + 1, foundation="é" * 400) for n in range(64))),
    ],
    ids=["service", "wide service", "foundation", "all"],
)
def test_the_largest_offers_are_kept_small(message: CandidateOffer) -> None:
    payload = kept(message, bytes(MAX_FRAME_BYTES - len(wire.encode(message))))
    assert len(payload) < 10_240
    small = wire.decode(payload)
    assert isinstance(small, CandidateOffer)
    assert [each.address for each in small.candidates] == [each.address for each in message.candidates]
    assert len(small.candidates) <= MAX_CANDIDATES


def test_a_service_that_is_too_long_stays_so() -> None:
    small = wire.decode(kept(CandidateOffer(1, "s" * 60_000, LIST)))
    assert isinstance(small, CandidateOffer)
    book = Book()
    actions = offer(book, service=small.service, registered=False)
    assert len(small.service.encode()) > 255, "nobody can have registered it"
    assert error(actions) == (AGENT.conn, 42, 2)
    assert record(actions).reason is Reason.NOT_REGISTERED


def test_a_foundation_that_is_too_long_is_replaced_as_ever() -> None:
    book = Book()
    long = (host("198.51.100.9", foundation="f" * 60_000),)
    [forwarded] = of(route(book, offer(book, candidates=long)), Send)
    told = wire.decode(forwarded.payload)
    assert isinstance(told, CandidateOffer)
    assert told.candidates[0].foundation == "host_198.51.100.9"
    assert book.totals.candidates["replaced", "host"] == 1
