"""A model of the book of signaling, and random steps that both take."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address

from intermediate_server.errors import TooManyCandidates, WireError
from intermediate_server.signaling import (
    Action,
    Book,
    Ended,
    EndSignaling,
    Introduce,
    Limits,
    LookUpRoute,
    Outcome,
    Reason,
    Send,
    Separate,
    Settings,
    State,
)
from intermediate_server.signaling.introductions import Introductions
from intermediate_server.types import Address, ConnectionId, Peer, Role
from intermediate_server.wire import signaling as wire
from intermediate_server.wire.signaling import (
    Candidate,
    CandidateAnswer,
    CandidateKind,
    CandidateOffer,
    PunchingResult,
    SignalingError,
    StartPunching,
)

LIMITS = Limits(
    sessions=7,
    sessions_per_agent=3,
    sessions_per_connector=3,
    introduced_per_agent=2,
    introduced_per_connector=2,
    offers_per_second=1.0,
    offers_at_once=4,
    records=5,
    malformed=3,
)
CONNECTIONS = tuple(map(ConnectionId, range(1, 7)))
MOSTLY_CONNECTORS = CONNECTIONS + CONNECTIONS[4:] * 4
SERVICES = ("web", "db", "mail")


@dataclass
class Known:
    """A session as an observer of the actions sees it."""

    agent: ConnectionId
    agent_id: int
    service: str
    offered: float
    connector: ConnectionId | None = None
    connector_id: int | None = None
    started: bool = False
    reports: set[ConnectionId] = field(default_factory=set)


def own(conn: ConnectionId, service: str) -> tuple[Candidate, ...]:
    """A candidate that names who gave it, so that whoever is told it can be checked."""
    address = Address(ip_address(f"203.0.113.{conn}"), 5_000)
    return (Candidate(CandidateKind.HOST, address, 1, f"{conn}/{service}"),)


def party(conn: ConnectionId) -> Peer:
    return Peer(conn, Address(ip_address(f"198.51.100.{conn}"), 1_000 + conn), None)


class Model:
    """The model follows the actions; each rule says whom it may reach and which sessions it may end."""

    def __init__(self, source: random.Random) -> None:
        self.random = source
        # Ids that collide with those of agents, so that the book has to draw again.
        self.drawn = 0
        self.book = Book(Settings(limits=LIMITS), random_id=self.draw, wall_clock=lambda: 0.0)
        self.now = 0.0
        self.tokens: dict[ConnectionId, tuple[float, float]] = {}
        self.open: dict[int, Known] = {}
        self.introduced: set[tuple[ConnectionId, ConnectionId]] = set()
        self.services: dict[tuple[ConnectionId, ConnectionId], set[str]] = {}
        self.ended = 0
        self.refusing = False

    def draw(self) -> int:
        self.drawn += 1
        return self.drawn % 11

    # Every step

    def take(self, actions: list[Action], *, touched: set[int], replies_to: ConnectionId | None = None) -> list[Action]:
        """Check that actions stay within ``touched`` sessions and the connection that is answered."""
        parties: set[tuple[ConnectionId | None, bool]] = set()
        if replies_to is not None:
            parties |= {(replies_to, True), (replies_to, False)}
        for serial in touched:
            known = self.open[serial]
            parties |= {(known.agent, True), (known.connector, False)}
        for action in actions:
            match action:
                case Send(conn, _, to_agent):
                    assert (conn, to_agent) in parties
                case Introduce(agent, connector):
                    assert (agent, connector) not in self.introduced
                    self.introduced.add((agent, connector))
                case Separate(agent, connector):
                    self.introduced.remove((agent, connector))
        return actions

    def end(self, actions: list[Action], ended: set[int], *, refused: int = 0) -> None:
        """Check that exactly these sessions have ended, each with one record."""
        ends = [action for action in actions if isinstance(action, Ended)]
        records = [end.record for end in ends]
        gone = [self.open[serial] for serial in ended]
        expected = Counter((known.agent, known.agent_id, known.service) for known in gone)
        if refused:
            assert len(records) == refused
            assert not ended
        else:
            assert Counter((end.agent.conn, end.record.session, end.record.service) for end in ends) == expected
        for record in records:
            assert len(str(record.as_dict())) < 4096
        self.ended += len(records)
        for serial in ended:
            del self.open[serial]

    def of(self, conn: ConnectionId, role: Role) -> dict[int, Known]:
        if role is Role.AGENT:
            return {serial: known for serial, known in self.open.items() if known.agent == conn}
        return {serial: known for serial, known in self.open.items() if known.connector == conn}

    def guess(self, *, connector: bool = False) -> tuple[ConnectionId, int]:
        """A connection and an id that it names: often one of its own, sometimes that of another, or none."""
        own_ids: list[tuple[ConnectionId, int]] = []
        for known in self.open.values():
            if known.connector is not None and known.connector_id is not None:
                own_ids.append((known.connector, known.connector_id))
            if not connector:
                own_ids.append((known.agent, known.agent_id))
        if own_ids and self.random.random() < 0.8:
            return self.random.choice(own_ids)
        return self.random.choice(CONNECTIONS), self.random.randrange(11)

    def owned(self, conn: ConnectionId, session: int) -> int | None:
        for serial, known in self.of(conn, Role.AGENT).items():
            if known.agent_id == session:
                return serial
        for serial, known in self.of(conn, Role.CONNECTOR).items():
            if known.connector_id == session:
                return serial
        return None

    # Messages

    def offer(self) -> None:
        conn, session = self.random.choice(CONNECTIONS), self.random.randrange(5)
        service = self.random.choice(SERVICES) if self.random.random() < 0.95 else ""
        registered, allowed = self.random.random() < 0.9, self.random.random() < 0.9
        payload = wire.encode(CandidateOffer(session, service, own(conn, service)))
        message = wire.decode(payload)
        assert isinstance(message, CandidateOffer)
        before = self.book.totals.dropped.copy()
        actions = self.book.offer(party(conn), message, payload, registered=registered, allowed=allowed, now=self.now)
        self.take(actions, touched=set(), replies_to=conn)
        tokens, at = self.tokens.get(conn, (4.0, self.now))
        tokens = min(4.0, tokens + self.now - at)
        self.tokens[conn] = (tokens - (tokens >= 1), self.now)
        assert (self.book.totals.dropped["offer_rate"] > before["offer_rate"]) == (tokens < 1)
        if self.book.totals.dropped != before:
            assert not any(isinstance(action, Ended | LookUpRoute) for action in actions)
            return
        look_ups = [action for action in actions if isinstance(action, LookUpRoute)]
        assert bool(look_ups) != any(isinstance(action, Ended) for action in actions)
        self.end(actions, set(), refused=1 - len(look_ups))
        for look_up in look_ups:
            assert registered and allowed and service and not self.refusing
            assert (look_up.agent, look_up.service) == (conn, service)
            assert look_up.request not in self.open
            self.open[look_up.request] = Known(conn, session, service, self.now)

    def route_found(self) -> None:
        waiting = [serial for serial, known in self.open.items() if known.connector is None]
        if not self.open:
            return
        serial = self.random.choice(waiting or sorted(self.open))
        conn = self.random.choice(MOSTLY_CONNECTORS) if self.random.random() < 0.95 else None
        conflict = "translated" if self.random.random() < 0.05 else None
        known = self.open[serial]
        routed = known.connector is not None
        actions = self.book.route_found(serial, None if conn is None else party(conn), conflict, self.now)
        if routed:
            assert actions == []
            return
        if any(isinstance(action, Ended) for action in actions):
            self.take(actions, touched={serial})
            self.end(actions, {serial})
            return
        assert conn is not None and conn != known.agent and conflict is None
        known.connector = conn
        (send,) = self.take(actions, touched={serial})
        assert isinstance(send, Send) and send.conn == conn
        forwarded = wire.decode(send.payload)
        assert isinstance(forwarded, CandidateOffer)
        assert forwarded.service == known.service
        assert forwarded.candidates[:1] == own(known.agent, known.service)
        for other in self.of(conn, Role.CONNECTOR).values():
            assert other is known or other.connector_id != forwarded.session, "two sessions of one id"
        assert forwarded.session not in {other.agent_id for other in self.of(conn, Role.AGENT).values()}
        known.connector_id = forwarded.session

    def answer(self) -> None:
        (conn, session), empty = self.guess(connector=True), self.random.random() < 0.1
        asked = {
            serial
            for serial, known in self.of(conn, Role.CONNECTOR).items()
            if known.connector_id == session and not known.started
        }
        payload = wire.encode(CandidateAnswer(session, () if empty else own(conn, "answer")))
        message = wire.decode(payload)
        assert isinstance(message, CandidateAnswer)
        actions = self.book.answer(conn, message, self.now)
        if not asked:
            (error,) = self.take(actions, touched=set(), replies_to=conn)
            assert isinstance(error, Send)
            refused = wire.decode(error.payload)
            assert isinstance(refused, SignalingError)
            assert (refused.session, refused.code) == (session, 3)
            return
        (serial,) = asked
        known = self.open[serial]
        self.take(actions, touched=asked)
        if any(isinstance(action, Ended) for action in actions):
            self.end(actions, asked)
            return
        assert not empty
        known.started = True
        assert known.connector is not None
        self.services.setdefault((known.agent, known.connector), set()).add(known.service)
        starts = [(action.conn, wire.decode(action.payload)) for action in actions if isinstance(action, Send)]
        told = dict(starts)
        assert len(starts) == 2
        to_agent, to_connector = told[known.agent], told[known.connector]
        assert isinstance(to_agent, StartPunching) and isinstance(to_connector, StartPunching)
        assert (to_agent.session, to_connector.session) == (known.agent_id, known.connector_id)
        assert to_agent.peer_candidates[0] == own(known.connector, "answer")[0]
        assert to_connector.peer_candidates[0] == own(known.agent, known.service)[0]
        assert (known.agent, known.connector) in self.introduced, "started before it is introduced"
        if isinstance(actions[0], Send):
            assert not any(isinstance(action, Introduce) for action in actions)

    def result(self) -> None:
        (conn, session), success = self.guess(), self.random.random() < 0.5
        serial = self.owned(conn, session)
        actions = self.book.result(conn, PunchingResult(session, success), self.now)
        known = None if serial is None else self.open[serial]
        if serial is None or known is None or not known.started or conn in known.reports:
            assert actions == []
            return
        known.reports.add(conn)
        send = self.take(actions, touched={serial})[0]
        assert isinstance(send, Send) and send.conn != conn
        passed_on = wire.decode(send.payload)
        assert isinstance(passed_on, PunchingResult)
        assert (self.owned(send.conn, passed_on.session), passed_on.success) == (serial, success)
        self.end(actions, {serial} if len(known.reports) == 2 else set())

    def error(self) -> None:
        conn, guessed = self.guess()
        session = guessed if self.random.random() < 0.9 else None
        serial = None if session is None else self.owned(conn, session)
        actions = self.book.error(conn, SignalingError(session, 6, "no"), self.now)
        if serial is None:
            assert actions == []
            return
        self.take(actions, touched={serial})
        for send in actions:
            if isinstance(send, Send):
                passed_on = wire.decode(send.payload)
                assert isinstance(passed_on, SignalingError) and passed_on.session is not None
                assert send.conn != conn
                assert self.owned(send.conn, passed_on.session) == serial
        self.end(actions, {serial})

    def start(self) -> None:
        conn, session = self.guess()
        assert self.book.start(conn, StartPunching(session, 0, ()), self.now) == []

    def invalid(self) -> None:
        conn, session = self.guess()
        error = TooManyCandidates("", session=session, offer=True) if self.random.random() < 0.5 else WireError("")
        for action in self.take(self.book.invalid(conn, error, self.now), touched=set(), replies_to=conn):
            assert isinstance(action, Send | EndSignaling)
            assert action.conn == conn

    # Connections, registrations, settings, time

    def peer_not_reading(self) -> None:
        conn = self.random.choice(CONNECTIONS)
        ended = {*self.of(conn, Role.AGENT), *self.of(conn, Role.CONNECTOR)}
        actions = self.take(self.book.peer_not_reading(conn, self.now), touched=ended)
        assert all(action.conn != conn for action in actions if isinstance(action, Send)), "sent to who does not read"
        self.end(actions, ended)

    def revoked(self) -> None:
        conn, role = self.random.choice(CONNECTIONS), self.random.choice(list(Role))
        service = self.random.choice(SERVICES)
        ended = {serial for serial, known in self.of(conn, role).items() if known.service == service}
        actions = self.take(self.book.revoked(conn, role, service, "policy", self.now), touched=ended)
        self.end(actions, ended)
        for (agent, connector), named in list(self.services.items()):
            if conn == (agent if role is Role.AGENT else connector):
                named.discard(service)
                if not named:
                    del self.services[agent, connector]

    def closed(self) -> None:
        self.close(self.random.choice(CONNECTIONS))

    def close(self, conn: ConnectionId) -> None:
        ended = {*self.of(conn, Role.AGENT), *self.of(conn, Role.CONNECTOR)}
        actions = self.take(self.book.closed(conn, self.now), touched=ended)
        assert all(action.conn != conn for action in actions if isinstance(action, Send)), "sent to who has closed"
        self.end(actions, ended)
        self.services = {pair: named for pair, named in self.services.items() if conn not in pair}
        assert not any(conn in pair for pair in self.introduced)
        assert self.book.closed(conn, self.now) == []
        self.tokens.pop(conn, None)

    def time_passes(self) -> None:
        self.now += self.random.choice([0.125, 1.0, 2.0, 5.0])
        due = {
            serial
            for serial, known in self.open.items()
            if known.offered + (15.0 if known.started else 5.0) <= self.now
        }
        actions = self.take(self.book.expire(self.now), touched=due)
        self.end(actions, due)
        assert self.book.expire(self.now) == []

    def refuse_all(self) -> None:
        ended = {serial for serial, known in self.open.items() if not known.started}
        if self.random.random() < 0.1:
            actions = self.book.refuse_all(Reason.DRAINING, self.now)
            self.refusing = True
        else:
            actions = self.book.use(Settings(direct="off", limits=LIMITS), self.now)
            assert self.book.use(Settings(limits=LIMITS), self.now) == []
        self.end(self.take(actions, touched=ended), ended)

    # Bounds

    def bounds_hold(self) -> None:
        assert len(self.open) <= LIMITS.sessions
        states = self.book.states
        routing = sum(known.connector is None for known in self.open.values())
        started = sum(known.started for known in self.open.values())
        assert states == {
            State.ROUTING: routing,
            State.OFFERED: len(self.open) - routing - started,
            State.STARTED: started,
            State.INTRODUCED: len(self.introduced),
        }
        for conn in CONNECTIONS:
            assert len(self.of(conn, Role.AGENT)) <= LIMITS.sessions_per_agent
            assert len(self.of(conn, Role.CONNECTOR)) <= LIMITS.sessions_per_connector
            assert sum(agent == conn for agent, _ in self.introduced) <= LIMITS.introduced_per_agent
            assert sum(connector == conn for _, connector in self.introduced) <= LIMITS.introduced_per_connector
        assert self.introduced == set(self.services)
        assert len(self.book.records) == min(self.ended, LIMITS.records)
        totals = self.book.totals
        assert totals.sessions - len(self.open) <= sum(totals.results.values())
        unsuccessful = (Outcome.FAILED, Outcome.UNANSWERED, Outcome.REFUSED)
        assert sum(totals.failures.values()) == sum(totals.results[outcome] for outcome in unsuccessful)
        assert sum(totals.start_counts) >= started

    def the_next_expiry_is_that_of_the_first(self) -> None:
        moments = [known.offered + (15.0 if known.started else 5.0) for known in self.open.values()]
        assert self.book.next_expiry() == min(moments, default=None)

    def finish(self) -> None:
        """Close everything; nothing may be left."""
        for conn in CONNECTIONS:
            self.close(conn)
        assert self.introduced == set()
        assert self.open == {}
        assert self.book.next_expiry() is None
        assert self.book._introductions == Introductions()
        assert not self.book._ledger._connections
