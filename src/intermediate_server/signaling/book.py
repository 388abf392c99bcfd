"""The book of signaling sessions: each message of a peer leads to actions.

A session belongs to two connections, each of which names it by an id of its own: the agent by the id of its offer,
the connector by the id that the relay put into the forwarded offer. The book looks an id up at the connection that the
message came from and nowhere else, so no peer can name a session of others.

=========  ===========================================  ======================================================
state      entered by                                   left by
=========  ===========================================  ======================================================
Routing    an offer of a registered agent               its route: Offered, or an Error
Offered    the offer forwarded to the connector         the connector's answer: Started; an Error of either; 5 s
Started    StartPunching sent to both                   the results of both, an Error of either, 15 s in all
=========  ===========================================  ======================================================

A closed connection or a revoked registration ends its sessions in any state. With Started the pair is introduced, and
stays so after the session until a connection closes or all its services are revoked.

The book does no IO and needs no lock. Its caller brings the time: ``now`` in seconds of a clock that never goes back.
Each method returns the actions to carry out, in their order. The cost of a message does not grow with the number of
sessions.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable

from intermediate_server.errors import TooManyCandidates, WireError
from intermediate_server.signaling.actions import Action, Ended, EndSignaling, LookUpRoute, Send, Started
from intermediate_server.signaling.candidates import Edited, edit
from intermediate_server.signaling.introductions import Introductions
from intermediate_server.signaling.ledger import Ledger
from intermediate_server.signaling.records import CODES, SENTENCES, Outcome, Reason, Record, printable
from intermediate_server.signaling.session import Session, State
from intermediate_server.signaling.settings import Settings
from intermediate_server.signaling.totals import SignalingTotals
from intermediate_server.types import ConnectionId, Peer, Role
from intermediate_server.wire.signaling import (
    CandidateAnswer,
    CandidateOffer,
    ErrorCode,
    PunchingResult,
    SignalingError,
    StartPunching,
    encode,
    encode_offer,
    encode_start,
    with_session,
)

START_DELAY_MS = 100
"""Connectors in the field never probe, so there is no instant to agree on."""


class Book:
    """All signaling sessions of a relay."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        random_id: Callable[[], int] = lambda: secrets.randbits(64),
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """``random_id`` gives ids below 2**64 that nobody can guess, ``wall_clock`` the Unix time for records."""
        self._settings = Settings() if settings is None else settings
        self._random_id = random_id
        self._wall_clock = wall_clock
        self._refusing: Reason | None = None
        self._ledger = Ledger(self._settings.limits)
        self._introductions = Introductions()

    @property
    def totals(self) -> SignalingTotals:
        """The counts since the start."""
        return self._ledger.totals

    @property
    def records(self) -> deque[Record]:
        """The records of the newest sessions, oldest first."""
        return self._ledger.records

    @property
    def states(self) -> dict[State, int]:
        """How many sessions are in each state, and how many pairs are introduced."""
        counts = {state: self._ledger.states[state] for state in State}
        return {**counts, State.INTRODUCED: self._introductions.count}

    # Messages

    def offer(
        self, agent: Peer, offer: CandidateOffer, payload: bytes, *, registered: bool, now: float, allowed: bool = True
    ) -> list[Action]:
        """Take an offer of a connection that is open, and its payload as :func:`bounded` gives it.

        ``registered`` says whether the connection is an agent of the service, ``allowed`` whether the policy lets it
        have a direct path.
        """
        self.totals.frames["received", "offer"] += 1
        limits = self._settings.limits
        connection = self._ledger.connection(agent.conn, now)
        if not connection.take(now, rate=limits.offers_per_second, burst=limits.offers_at_once):
            self.totals.dropped["offer_rate"] += 1
            return self._busy(agent.conn, offer.session)
        if connection.find(offer.session) is not None:
            self.totals.dropped["repeated"] += 1
            return []
        session = Session(agent, offer.session, offer.service, now, self._wall_clock())
        if not offer.service:
            return self._end(session, Reason.INVALID, now)
        if self._refusing is not None:
            return self._end(session, self._refusing, now)
        if self._settings.direct != "all":
            return self._end(session, Reason.OFF, now)
        if not registered:
            return self._end(session, Reason.NOT_REGISTERED, now)
        if not allowed:
            return self._end(session, Reason.POLICY, now)
        if len(connection.as_agent) >= limits.sessions_per_agent:
            return self._end(session, Reason.BUSY, now, f"{len(connection.as_agent)} open sessions of the agent")
        if len(self._ledger.open) >= limits.sessions:
            return self._end(session, Reason.BUSY, now, f"{len(self._ledger.open)} open sessions of the relay")
        session.offer = (offer, payload)
        return [LookUpRoute(self._ledger.begin(session), agent.conn, offer.service)]

    def busy(self, agent: ConnectionId, session: int) -> list[Action]:
        """Refuse an offer for which there is no time."""
        self.totals.frames["received", "offer"] += 1
        return self._busy(agent, session)

    def service_of(self, request: int) -> str | None:
        """The service whose connector is being looked up; None where the session has ended meanwhile."""
        session = self._ledger.open.get(request)
        return None if session is None else session.service

    def route_found(
        self, request: int, connector: Peer | None, conflict: str | None, now: float, *, allowed: bool = True
    ) -> list[Action]:
        """Go on with a session whose connector was looked up.

        ``connector`` is None where the service has none, or its connection has closed meanwhile. ``conflict`` says why
        the pair cannot be introduced: ``translated``, ``ambiguous`` or ``learned``. ``allowed`` says whether the policy
        lets the connector have a direct path.
        """
        session = self._ledger.open.get(request)
        if session is None or session.offer is None:
            return []
        if connector is None or connector.conn == session.agent.conn:
            return self._end(session, Reason.NO_CONNECTOR, now)
        if not allowed:
            return self._end(session, Reason.POLICY, now)
        if conflict is not None:
            return self._end(session, Reason.LEARNED if conflict == "learned" else Reason.ADDRESS, now, conflict)
        limits = self._settings.limits
        connection = self._ledger.connection(connector.conn, now)
        open_sessions = len(connection.as_connector)
        if open_sessions >= limits.sessions_per_connector:
            return self._end(session, Reason.BUSY, now, f"{open_sessions} open sessions of the connector")
        if not self._introductions.room(session.agent.conn, connector.conn, limits):
            return self._end(session, Reason.BUSY, now, "connections of the pair are introduced to too many others")
        (offer, payload), session.offer = session.offer, None
        told = session.agent_told = self._edited(offer, session.agent, connector)
        self._ledger.offered(session, connector, connection.free_id(offer.session, self._random_id))
        if told.changed:
            payload = encode_offer(session.connector_id, offer.service, told.encoded)
        elif session.connector_id != offer.session:
            payload = with_session(payload, session.connector_id)
        return [self._send(connector.conn, payload, "offer", to_agent=False)]

    def answer(self, conn: ConnectionId, answer: CandidateAnswer, now: float) -> list[Action]:
        """Take the answer of a connector: it counts once, and only of the connection that was asked."""
        self.totals.frames["received", "answer"] += 1
        connection = self._ledger.known(conn)
        session = None if connection is None else connection.as_connector.get(answer.session)
        if session is None or session.connector is None or session.agent_told is None or session.state is State.STARTED:
            self.totals.dropped["no_session"] += 1
            return [self._error(conn, answer.session, ErrorCode.SESSION_NOT_FOUND, "no such session", to_agent=False)]
        agent, connector = session.agent, session.connector
        session.answered = now
        told = session.connector_told = self._edited(answer, connector, agent)
        if not answer.candidates or not told.families:
            return self._end(session, Reason.NO_CANDIDATES, now)
        if not self._introductions.room(agent.conn, connector.conn, self._settings.limits):
            return self._end(session, Reason.BUSY, now, "connections of the pair are introduced to too many others")
        self._ledger.started(session, now)
        to_connector = encode_start(session.connector_id, START_DELAY_MS, session.agent_told.encoded)
        to_agent = encode_start(session.agent_id, START_DELAY_MS, told.encoded)
        return [
            *self._introductions.add(agent.conn, connector.conn, session.service),
            self._send(connector.conn, to_connector, "start", to_agent=False),
            self._send(agent.conn, to_agent, "start", to_agent=True),
            Started(session.serial, agent.conn),
        ]

    def probably_direct(self, serial: int) -> None:
        """Note that the agent of a session was sent packets for a while and sent none through the relay."""
        session = self._ledger.open.get(serial)
        if session is not None:
            session.probably_direct = True

    def result(self, conn: ConnectionId, result: PunchingResult, now: float) -> list[Action]:
        """Take the result of a party's probes, and pass it on."""
        self.totals.frames["received", "result"] += 1
        session = self._owned(conn, result.session)
        other = None if session is None else session.other(conn)
        if session is None or other is None or session.state is not State.STARTED or conn in session.reports:
            self.totals.dropped["not_owner" if session is None else "unexpected"] += 1
            return []
        session.reports[conn] = (result.success, result.working_address)
        to, session_id, to_agent = other
        passed_on = encode(PunchingResult(session_id, result.success, result.working_address))
        actions: list[Action] = [self._send(to, passed_on, "result", to_agent=to_agent)]
        if len(session.reports) == 2:
            actions += self._end(session, Reason.UNREPORTED, now)
        return actions

    def error(self, conn: ConnectionId, error: SignalingError, now: float) -> list[Action]:
        """End a session for a party, and pass its Error on."""
        self.totals.frames["received", "error"] += 1
        session = None if error.session is None else self._owned(conn, error.session)
        if session is None:
            self.totals.dropped["not_owner"] += 1
            return []
        text = printable(error.message)
        actions: list[Action] = []
        if (other := session.other(conn)) is not None:
            to, session_id, to_agent = other
            actions.append(self._error(to, session_id, error.code, text, to_agent=to_agent))
        by = "agent" if conn == session.agent.conn else "connector"
        return actions + self._end(session, Reason.ENDED, now, f"{by}, code {error.code}, {text}", silent=True)

    def start(self, conn: ConnectionId, message: StartPunching, now: float) -> list[Action]:
        """Ignore a StartPunching: no peer may send one."""
        self.totals.frames["received", "start"] += 1
        self.totals.dropped["unexpected"] += 1
        return []

    def invalid(self, conn: ConnectionId, error: WireError, now: float) -> list[Action]:
        """Count a payload that could not be decoded; too many of them end the signaling of the connection."""
        self.totals.frames["received", "malformed"] += 1
        self.totals.dropped["malformed"] += 1
        connection = self._ledger.connection(conn, now)
        connection.malformed += 1
        if connection.malformed > self._settings.limits.malformed:
            return [EndSignaling(conn)]
        if isinstance(error, TooManyCandidates):
            return [self._error(conn, error.session, ErrorCode.INVALID, str(error), to_agent=error.offer)]
        return []

    # Connections, registrations and settings

    def peer_not_reading(self, conn: ConnectionId, now: float) -> list[Action]:
        """End the sessions of a connection for which a frame was dropped."""
        self.totals.dropped["peer_not_reading"] += 1
        connection = self._ledger.known(conn)
        if connection is None:
            return []
        mine = self._end_all(connection.as_agent.values(), Reason.PEER_NOT_READING, now, "agent", silent=True)
        return mine + self._end_all(connection.as_connector.values(), Reason.PEER_NOT_READING, now, "connector")

    def revoked(self, conn: ConnectionId, role: Role, service: str, reason: str, now: float) -> list[Action]:
        """End the sessions and introductions of a registration, revoked for a reason such as ``expired``."""
        actions: list[Action] = []
        connection = self._ledger.known(conn)
        if connection is not None:
            concerned = [session for session in connection.of(role).values() if session.service == service]
            code = ErrorCode.REJECTED if role is Role.AGENT else ErrorCode.NO_CONNECTOR
            actions += self._end_all(concerned, Reason.REVOKED, now, reason, code=code)
        return actions + list(self._introductions.revoke(conn, role, service))

    def closed(self, conn: ConnectionId, now: float) -> list[Action]:
        """Forget a connection, with all its sessions."""
        actions: list[Action] = []
        connection = self._ledger.known(conn)
        if connection is not None:
            actions += self._end_all(connection.as_agent.values(), Reason.AGENT_GONE, now, silent=True)
            actions += self._end_all(connection.as_connector.values(), Reason.CONNECTOR_GONE, now)
            self._ledger.forget(conn)
        return actions + list(self._introductions.close(conn))

    def refuse_all(self, reason: Reason, now: float) -> list[Action]:
        """End the sessions that have not started and refuse all further offers, as for ``DRAINING``."""
        self._refusing = reason
        return self._end_all(self._ledger.unanswered.values(), reason, now)

    def use(self, settings: Settings, now: float) -> list[Action]:
        """Take other settings, which count from now on; sessions that have started go on."""
        self._settings = settings
        self._ledger.use(settings.limits)
        return [] if settings.direct == "all" else self._end_all(self._ledger.unanswered.values(), Reason.OFF, now)

    # Time

    def expire(self, now: float) -> list[Action]:
        """End the sessions whose time has passed."""
        actions: list[Action] = []
        while (session := self._ledger.expired(now)) is not None:
            match session.state:
                case State.ROUTING:
                    actions += self._end(session, Reason.BUSY, now, "no route in 5 s")
                case State.OFFERED:
                    # Clients in the field wait for no Error here.
                    actions += self._end(session, Reason.UNANSWERED, now, silent=True)
                case _:
                    actions += self._end(session, Reason.UNREPORTED, now)
        return actions

    def next_expiry(self) -> float | None:
        """When :meth:`expire` is to be called next, None while there is nothing to expire."""
        return self._ledger.next_expiry()

    # Steps

    def _end_all(
        self,
        sessions: Iterable[Session],
        reason: Reason,
        now: float,
        detail: str = "",
        *,
        silent: bool = False,
        code: ErrorCode | None = None,
    ) -> list[Action]:
        actions: list[Action] = []
        for session in list(sessions):
            actions += self._end(session, reason, now, detail, silent=silent, code=code)
        return actions

    def _end(
        self,
        session: Session,
        reason: Reason,
        now: float,
        detail: str = "",
        *,
        silent: bool = False,
        code: ErrorCode | None = None,
    ) -> list[Action]:
        """End a session; the agent learns it before both sides have begun, unless ``silent``."""
        waiting = session.state is not State.STARTED
        actions: list[Action] = [Ended(session.agent, self._ledger.end(session, reason, now, detail))]
        if waiting and not silent:
            code = code or CODES.get(reason, ErrorCode.REJECTED)
            # Every Error 2 has one text: nobody learns the names of services that others have.
            text = SENTENCES[Reason.NO_CONNECTOR if code is ErrorCode.NO_CONNECTOR else reason]
            actions.insert(0, self._error(session.agent.conn, session.agent_id, code, text, to_agent=True))
        return actions

    def _busy(self, agent: ConnectionId, session: int) -> list[Action]:
        """Refuse an offer without a record: a flood of offers would push out the records of all others."""
        self.totals.ended(Outcome.REFUSED, Reason.BUSY)
        return [self._error(agent, session, ErrorCode.REJECTED, SENTENCES[Reason.BUSY], to_agent=True)]

    def _edited(self, message: CandidateOffer | CandidateAnswer, party: Peer, other: Peer) -> Edited:
        edited = edit(
            message.candidates,
            message.encoded,
            party=party.address,
            other=other.address,
            relay=self._settings.relay_addresses,
            always_private=self._settings.private_candidates == "always",
        )
        self.totals.edited(edited.counts)
        return edited

    def _owned(self, conn: ConnectionId, session: int) -> Session | None:
        connection = self._ledger.known(conn)
        return None if connection is None else connection.find(session)

    def _send(self, conn: ConnectionId, payload: bytes, message: str, *, to_agent: bool) -> Send:
        self.totals.frames["sent", message] += 1
        return Send(conn, payload, to_agent)

    def _error(self, conn: ConnectionId, session: int, code: int, text: str, *, to_agent: bool) -> Send:
        return self._send(conn, encode(SignalingError(session, code, text)), "error", to_agent=to_agent)
