"""Signaling: agents ask to be introduced to the connectors of their services (docs/direct.md).

The engine cuts streams into frames, the book of ``signaling`` decides, and what it orders leaves with the route changes
of the same turn. Offers cost most, so they wait in a queue of their own (``offers``): registrations and closes come
first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import structlog

from intermediate_server.audit import who
from intermediate_server.engine import Command, Event
from intermediate_server.errors import WireError
from intermediate_server.sessions.decision_log import Decisions, owner_of
from intermediate_server.sessions.direct_traffic import Traffic
from intermediate_server.sessions.offers import Offer, Offers
from intermediate_server.sessions.session import Session
from intermediate_server.signaling import (
    Action,
    Book,
    Ended,
    EndSignaling,
    Introduce,
    LookUpRoute,
    Reason,
    Record,
    Send,
    Separate,
    Settings,
    Started,
    bounded,
)
from intermediate_server.types import ConnectionId, Peer, Role
from intermediate_server.wire.signaling import (
    CandidateAnswer,
    CandidateOffer,
    PunchingResult,
    SignalingError,
    StartPunching,
    decode,
)

TURN = 0.1
"""Seconds in which so many offers are looked at."""

OFFERS_PER_TURN = 10
"""So 100 a second are taken."""

HELD = 3.0
"""Seconds that an offer waits for its sender's registration, which comes in a DATAGRAM and may have been lost."""

UNCUTTABLE = (
    "An agent and a connector of ztna-v1 were introduced; nobody but the connector can end their direct path, and "
    'direct = "off" introduces nobody'
)

_log = structlog.get_logger()


class Signaling:
    """The signaling of all sessions; ``sessions`` is the sessions' own table, read here."""

    def __init__(
        self, *, sessions: Mapping[int, Session], submit: Callable[..., None], book: Book, decisions: Decisions
    ) -> None:
        self.book = book
        self._sessions = sessions
        self._submit = submit
        self._decisions = decisions
        self._offers = Offers()
        self._held: dict[int, tuple[Offer, asyncio.TimerHandle]] = {}
        """By connection. The engine reads no second frame of one that has registered nothing."""
        self._turn: asyncio.TimerHandle | None = None
        self._turn_began = float("-inf")
        self._left = 0
        """Offers that this turn still takes."""
        self._expiry: asyncio.TimerHandle | None = None
        self._traffic = Traffic(submit=submit, probably_direct=book.probably_direct)
        self._warned = False

    def stop(self) -> None:
        """Cancel the timers."""
        for timer in (self._turn, self._expiry):
            if timer is not None:
                timer.cancel()
        self._turn = self._expiry = None
        self._traffic.stop()
        for conn in tuple(self._held):
            self._let_go(conn)

    def drain(self) -> None:
        """Refuse every offer from now on, those that wait too, and end what has not started."""
        self._carry_out(self.book.refuse_all(Reason.DRAINING, _now()))

    def use(self, settings: Settings) -> None:
        """Introduce by other settings from now on."""
        self._carry_out(self.book.use(settings, _now()))

    # Events

    def signal(self, event: Event.Signal) -> None:
        """Take one frame of a connection."""
        session = self._sessions.get(event.conn)
        if session is None or session.closing:
            return
        conn, now = session.peer.conn, _now()
        try:
            message = decode(event.payload)
        except WireError as error:
            self._carry_out(self.book.invalid(conn, error, now))
            return
        match message:
            case CandidateOffer():
                payload = bounded(message, event.payload)
                self._queue(Offer(conn, owner_of(session.peer), message.session, payload))
            case CandidateAnswer():
                self._carry_out(self.book.answer(conn, message, now))
            case PunchingResult():
                self._carry_out(self.book.result(conn, message, now))
            case SignalingError():
                self._carry_out(self.book.error(conn, message, now))
            case StartPunching():
                self._carry_out(self.book.start(conn, message, now))

    def stream_ended(self, event: Event.SignalEnded) -> None:
        """Count how a client's stream has ended."""
        self.book.totals.streams[event.reason] += 1

    def dropped(self, event: Event.SignalDropped) -> None:
        """End the sessions of a peer that does not read its stream."""
        self._carry_out(self.book.peer_not_reading(ConnectionId(event.conn), _now()))

    def inspected(self, event: Event.Inspected) -> None:
        """Take what a connection has moved so far."""
        self._traffic.inspected(event)

    def route_found(self, event: Event.RouteFound) -> None:
        """Go on with the offer for which a connector was looked up."""
        service = self.book.service_of(event.request)
        connector = None if event.connector is None else self._sessions.get(event.connector)
        if service is None or connector is None or connector.closing:
            self._carry_out(self.book.route_found(event.request, None, None, _now()))
            return
        allow = connector.grants.get((Role.CONNECTOR, service))
        allowed = allow is not None and allow.direct
        self._carry_out(self.book.route_found(event.request, connector.peer, event.conflict, _now(), allowed=allowed))

    # What happens to registrations and connections

    def registered(self, conn: ConnectionId) -> None:
        """Look at the offer that came before the registration."""
        offer = self._let_go(conn)
        if offer is not None:
            self._queue(offer)

    def revoked(self, conn: ConnectionId, role: Role, service: str, reason: str) -> None:
        """End what a revoked registration was the ground of."""
        self._carry_out(self.book.revoked(conn, role, service, reason, _now()))

    def closed(self, conn: ConnectionId) -> None:
        """End everything of a connection that closes. Safe to repeat."""
        self._let_go(conn)
        self._traffic.forget(conn)
        actions = self.book.closed(conn, _now())
        # Without a timer nothing expires: most connections have signaled nothing.
        if actions or self._expiry is not None:
            self._carry_out(actions)

    # Offers

    def _queue(self, offer: Offer) -> None:
        refused = self._offers.put(offer)
        if refused is not None:
            self._carry_out(self.book.busy(refused.conn, refused.session))
        self._serve_soon()

    def _serve_soon(self) -> None:
        """Serve the queue after what has happened already, or when the next turn begins."""
        if self._turn is None and self._offers:
            due = _now() if self._left else self._turn_began + TURN
            self._turn = asyncio.get_running_loop().call_at(due, self._serve)

    def _serve(self) -> None:
        """Look at as many offers as the turn takes."""
        self._turn = None
        now = _now()
        if now >= self._turn_began + TURN:
            self._turn_began, self._left = now, OFFERS_PER_TURN
        while self._left and (offer := self._offers.take()) is not None:
            session = self._sessions.get(offer.conn)
            if session is None or session.closing:
                continue
            self._left -= 1
            if session.registered or offer.held:
                self._offer(session, offer.payload, now)
                continue
            session.offered = True
            due = asyncio.get_running_loop().call_at(now + HELD, self.registered, offer.conn)
            self._held[offer.conn] = offer._replace(held=True), due
        self._serve_soon()

    def _offer(self, session: Session, payload: bytes, now: float) -> None:
        # Only its payload has waited, which is a tenth of what is read from it.
        offer = cast("CandidateOffer", decode(payload))
        allow = session.grants.get((Role.AGENT, offer.service))
        registered, allowed = allow is not None, allow is not None and allow.direct
        self._carry_out(self.book.offer(session.peer, offer, payload, registered=registered, allowed=allowed, now=now))

    def _let_go(self, conn: int) -> Offer | None:
        """Take the offer of a connection that waits for its registration."""
        offer, due = self._held.pop(conn, (None, None))
        if due is not None:
            due.cancel()
        return offer

    # What the book orders

    def _carry_out(self, actions: Sequence[Action]) -> None:
        commands: list[Command] = []
        for action in actions:
            match action:
                case Send(conn, payload, to_agent):
                    commands.append(Command.SendSignal(conn, payload, to_agent))
                case LookUpRoute(request, agent, service):
                    commands.append(Command.LookUpRoute(request, agent, service.encode()))
                case Introduce(agent, connector):
                    commands.append(Command.Introduce(agent, connector))
                    self._warn()
                case Separate(agent, connector):
                    commands.append(Command.Separate(agent, connector))
                case Started(serial, agent):
                    self._traffic.watch(serial, agent)
                case EndSignaling(conn):
                    commands.append(Command.EndSignaling(conn))
                case Ended(agent, record):
                    self._log_ended(agent, record)
        if commands:
            self._submit(*commands)
        self._arm()

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(UNCUTTABLE)

    def _log_ended(self, agent: Peer, record: Record) -> None:
        if not self._decisions.may_write("introduction", agent):
            return
        _log.info(
            f"Introduction ended: {record.sentence}",
            **who(agent),
            service=record.service,
            outcome=str(record.outcome),
            reason=str(record.reason),
            connector=None if record.connector is None else str(record.connector.address),
            ms=record.ended_ms,
        )

    def _arm(self) -> None:
        """Set the timer for what expires next."""
        due = self.book.next_expiry()
        if self._expiry is not None and (due is None or self._expiry.when() != due):
            self._expiry.cancel()
            self._expiry = None
        if self._expiry is None and due is not None:
            self._expiry = asyncio.get_running_loop().call_at(due, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        self._carry_out(self.book.expire(_now()))


def _now() -> float:
    return asyncio.get_running_loop().time()
