"""One session, and the state of one connection."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from intermediate_server.signaling.candidates import Edited
from intermediate_server.signaling.records import PROBABLY_DIRECT, Outcome, Reason, Record, Side, explain, printable
from intermediate_server.types import Address, ConnectionId, Peer, Role
from intermediate_server.wire.signaling import CandidateKind, CandidateOffer, decode_candidates


class State(enum.Enum):
    """The state of a session; ``INTRODUCED`` is that of a pair, which outlives its sessions."""

    ROUTING = "routing"
    """The engine is asked for the connector."""
    OFFERED = "offered"
    """The connector is asked for its candidates."""
    STARTED = "started"
    """Both sides were told to begin."""
    INTRODUCED = "introduced"


@dataclass(slots=True, eq=False)
class Session:
    """An offer and its progress."""

    agent: Peer
    agent_id: int
    """The session's id at the agent's side."""
    service: str
    at: float
    """When the offer came, by the clock of ``now``."""
    began: float
    """The same as Unix time."""
    serial: int = 0
    """Names it among all sessions; 0 for one that was not opened."""
    state: State = State.ROUTING
    offer: tuple[CandidateOffer, bytes] | None = None
    """With its payload, while it is not forwarded."""
    connector: Peer | None = None
    connector_id: int = 0
    """The session's id at the connector's side."""
    agent_told: Edited | None = None
    """The agent's candidates, as the connector is told them."""
    connector_told: Edited | None = None
    answered: float | None = None
    """When, by the clock of ``now``."""
    probably_direct: bool = False
    """Whether the relay carried answers to the agent for a while and nothing from it."""
    reports: dict[ConnectionId, tuple[bool, Address | None]] = field(default_factory=dict)
    """Success and working address, by the connection that reported."""

    def other(self, conn: ConnectionId) -> tuple[ConnectionId, int, bool] | None:
        """The other side of a party: its connection, its id, and whether it is the agent; None before the offer."""
        if self.connector is None:
            return None
        if conn == self.agent.conn:
            return self.connector.conn, self.connector_id, False
        return self.agent.conn, self.agent_id, True

    def record(self, ended_by: Reason, now: float, detail: str = "") -> Record:
        """The record of the session, which ends now."""
        agent, connector = self._side(self.agent, self.agent_told), None
        if self.connector is not None:
            connector = self._side(self.connector, self.connector_told)
        told = [one.families for one in (self.agent_told, self.connector_told) if one is not None]
        outcome, reason = explain(
            ended_by,
            started=self.state is State.STARTED,
            agent=agent.report,
            connector=None if connector is None else connector.report,
            common_family=len(told) < 2 or not told[0].isdisjoint(told[1]),
        )
        if self.probably_direct and outcome is Outcome.UNREPORTED:
            detail = PROBABLY_DIRECT
        working, kind = self._working()
        answered = None if self.answered is None else _ms(self.answered - self.at)
        return Record(
            began=self.began,
            session=self.agent_id,
            service=printable(self.service),
            agent=agent,
            connector=connector,
            answered_ms=answered,
            started_ms=answered if self.state is State.STARTED else None,
            ended_ms=_ms(now - self.at),
            working=working,
            working_kind=kind,
            outcome=outcome,
            reason=reason,
            detail=printable(detail),
        )

    def _side(self, party: Peer, told: Edited | None) -> Side:
        success, _ = self.reports.get(party.conn, (None, None))
        identity = None if party.identity is None else printable(party.identity.subject)
        return Side(identity, party.address, None if told is None else told.counts, success)

    def _working(self) -> tuple[Address | None, CandidateKind | None]:
        for party, told in ((self.agent, self.connector_told), (self.connector, self.agent_told)):
            if party is not None and told is not None:
                success, address = self.reports.get(party.conn, (False, None))
                if success and address is not None:
                    kinds = {one.address: one.kind for one in reversed(decode_candidates(told.encoded))}
                    return address, kinds.get(address)
        return None, None


@dataclass(slots=True)
class Connection:
    """The state of a connection until it closes."""

    tokens: float
    """Offers that it may make at once."""
    refilled: float
    malformed: int = 0
    as_agent: dict[int, Session] = field(default_factory=dict)
    """Open sessions by its own id."""
    as_connector: dict[int, Session] = field(default_factory=dict)
    """Open sessions by the id towards it."""

    def of(self, role: Role) -> dict[int, Session]:
        """Its open sessions in a role."""
        return self.as_agent if role is Role.AGENT else self.as_connector

    def find(self, session: int) -> Session | None:
        """The open session of an id, which names one at most, whatever the role."""
        return self.as_agent.get(session) or self.as_connector.get(session)

    def free_id(self, wanted: int, random_id: Callable[[], int]) -> int:
        """An id that it uses in no role: the wanted one, or else a random one."""
        while self.find(wanted) is not None:
            wanted = random_id()
        return wanted

    def take(self, now: float, *, rate: float, burst: int) -> bool:
        """Take a token for an offer, if there is one."""
        self.tokens = min(burst, self.tokens + max(0.0, now - self.refilled) * rate)
        self.refilled = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
