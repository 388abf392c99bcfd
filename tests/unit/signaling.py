"""Shared by the tests of signaling: two parties, their candidates, and the way to a started session."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TypeVar

from intermediate_server.signaling import Action, Book, Ended, LookUpRoute, Record, Send, bounded
from intermediate_server.types import Address, ConnectionId, Identity, Peer
from intermediate_server.wire import signaling as wire
from intermediate_server.wire.signaling import Candidate, CandidateAnswer, CandidateKind, CandidateOffer, Message

T = TypeVar("T")


def address(text: str, port: int = 50_000) -> Address:
    return Address(ip_address(text), port)


def host(text: str, port: int = 50_000, *, priority: int = 2_130_706_431, foundation: str | None = None) -> Candidate:
    name = f"host_{text}" if foundation is None else foundation
    return Candidate(CandidateKind.HOST, address(text, port), priority, name)


def identity(name: str) -> Identity:
    """The identity of a certificate with this common name."""
    now = datetime.now(UTC)
    return Identity(name, name.encode(), f"CN={name}", (), (), now, now + timedelta(days=1))


AGENT = Peer(ConnectionId(1), address("198.51.100.1", 1_001), identity("laptop"))
CONNECTOR = Peer(ConnectionId(2), address("198.51.100.2", 1_002), identity("office"))
STRANGER = Peer(ConnectionId(3), address("198.51.100.3", 1_003), None)


def other_agent(number: int) -> Peer:
    return Peer(ConnectionId(100 + number), address("198.51.100.1", 2_000 + number), None)


def observed(party: Peer) -> Candidate:
    """The candidate for the address at which a party is seen, as the relay adds it."""
    at = party.address
    return Candidate(CandidateKind.SERVER_REFLEXIVE, at, 1_694_498_815, f"srflx_{at.host}")


def offer(
    book: Book,
    agent: Peer = AGENT,
    *,
    session: int = 42,
    service: str = "web",
    candidates: tuple[Candidate, ...] | None = None,
    trailing: bytes = b"",
    registered: bool = True,
    allowed: bool = True,
    now: float = 0.0,
) -> list[Action]:
    listed = (observed(agent),) if candidates is None else candidates
    made = CandidateOffer(session, service, listed)
    payload = bounded(made, wire.encode(made) + trailing)
    message = wire.decode(payload)
    assert isinstance(message, CandidateOffer)
    return book.offer(agent, message, payload, registered=registered, allowed=allowed, now=now)


def route(
    book: Book,
    actions: list[Action],
    connector: Peer | None = CONNECTOR,
    *,
    conflict: str | None = None,
    now: float = 0.0,
) -> list[Action]:
    (look_up,) = of(actions, LookUpRoute)
    return book.route_found(look_up.request, connector, conflict, now)


def answer(
    book: Book,
    connector: Peer = CONNECTOR,
    *,
    session: int = 42,
    candidates: tuple[Candidate, ...] | None = None,
    now: float = 0.0,
) -> list[Action]:
    listed = (observed(connector),) if candidates is None else candidates
    message = wire.decode(wire.encode(CandidateAnswer(session, listed)))
    assert isinstance(message, CandidateAnswer)
    return book.answer(connector.conn, message, now)


def started(book: Book, *, session: int = 42, service: str = "web", now: float = 0.0) -> list[Action]:
    """A session between the agent and the connector, of which both were told to begin."""
    route(book, offer(book, session=session, service=service, now=now), now=now)
    return answer(book, session=session, now=now)


def of(actions: list[Action], kind: type[T]) -> list[T]:
    return [action for action in actions if isinstance(action, kind)]


def sent(actions: list[Action]) -> Iterator[tuple[ConnectionId, Message, bool]]:
    for send in of(actions, Send):
        yield send.conn, wire.decode(send.payload), send.to_agent


def error(actions: list[Action]) -> tuple[ConnectionId, int | None, int]:
    """The one Error that is sent: to whom, of which session, with which code."""
    ((conn, message, _),) = sent(actions)
    assert isinstance(message, wire.SignalingError)
    return conn, message.session, message.code


def record(actions: list[Action]) -> Record:
    (ended,) = of(actions, Ended)
    return ended.record
