"""The open sessions in the order of their expiry, the state of each connection, and the records of the ended."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator

from intermediate_server.signaling.records import Reason, Record
from intermediate_server.signaling.session import Connection, Session, State
from intermediate_server.signaling.settings import Limits
from intermediate_server.signaling.totals import SignalingTotals
from intermediate_server.types import ConnectionId, Peer

ANSWER_WITHIN = 5.0
"""Seconds from the offer in which the connector must answer; relays in the field give it as long."""

ENDS_AFTER = 15.0
"""Seconds from the offer after which nothing more is expected of the two sides."""


class Ledger:
    """The state of each session; every step of a session is written here, and nowhere else."""

    def __init__(self, limits: Limits) -> None:
        self.totals = SignalingTotals()
        self.records: deque[Record] = deque(maxlen=limits.records)
        """The newest records, oldest first."""
        self.open: OrderedDict[int, Session] = OrderedDict()
        """By serial, in the order of the offers."""
        self.unanswered: OrderedDict[int, Session] = OrderedDict()
        """Sessions that have not started, likewise."""
        self.states: Counter[State] = Counter()
        self._limits = limits
        self._connections: dict[ConnectionId, Connection] = {}
        self._serial = 0

    def use(self, limits: Limits) -> None:
        """Take other limits; what is open stays."""
        self._limits = limits
        if limits.records != self.records.maxlen:
            self.records = deque(self.records, maxlen=limits.records)

    def connection(self, conn: ConnectionId, now: float) -> Connection:
        """The state of a connection, kept from now on."""
        connection = self._connections.get(conn)
        if connection is None:
            connection = self._connections[conn] = Connection(self._limits.offers_at_once, now)
        return connection

    def known(self, conn: ConnectionId) -> Connection | None:
        """The state of a connection, if any is kept."""
        return self._connections.get(conn)

    def forget(self, conn: ConnectionId) -> None:
        """Drop the state of a connection whose sessions have ended."""
        self._connections.pop(conn, None)

    def begin(self, session: Session) -> int:
        """Open a session of an agent; the result names it among all."""
        self._serial += 1
        session.serial = self._serial
        self.totals.sessions += 1
        self._connections[session.agent.conn].as_agent[session.agent_id] = session
        self.open[session.serial] = self.unanswered[session.serial] = session
        self.states[State.ROUTING] += 1
        return session.serial

    def offered(self, session: Session, connector: Peer, connector_id: int) -> None:
        """Note which connector a session asks, and the session's id at its side."""
        session.connector, session.connector_id = connector, connector_id
        self._connections[connector.conn].as_connector[connector_id] = session
        self._enter(session, State.OFFERED)

    def started(self, session: Session, now: float) -> None:
        """Note that both sides of a session begin."""
        del self.unanswered[session.serial]
        self._enter(session, State.STARTED)
        self.totals.started(now - session.at)

    def end(self, session: Session, reason: Reason, now: float, detail: str = "") -> Record:
        """Write the record of a session; one that was never opened is a refused offer."""
        if self.open.pop(session.serial, None) is not None:
            self.unanswered.pop(session.serial, None)
            self.states[session.state] -= 1
            del self._connections[session.agent.conn].as_agent[session.agent_id]
            if session.connector is not None:
                del self._connections[session.connector.conn].as_connector[session.connector_id]
        record = session.record(reason, now, detail)
        self.records.append(record)
        self.totals.ended(record.outcome, record.reason)
        return record

    def expired(self, now: float) -> Session | None:
        """A session whose time has passed; it is to be ended before the next is asked for."""
        return next((session for due, session in self._due() if due <= now), None)

    def next_expiry(self) -> float | None:
        """When the next session expires, None while none is open."""
        return min((due for due, _ in self._due()), default=None)

    def _due(self) -> Iterator[tuple[float, Session]]:
        """The sessions that may expire next, each with its moment."""
        for sessions, seconds in ((self.unanswered, ANSWER_WITHIN), (self.open, ENDS_AFTER)):
            if sessions:
                session = next(iter(sessions.values()))
                yield session.at + seconds, session

    def _enter(self, session: Session, state: State) -> None:
        self.states[session.state] -= 1
        self.states[state] += 1
        session.state = state
