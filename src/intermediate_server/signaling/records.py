"""Records of signaling sessions: the two sides, their candidates, the outcome and the one reason for it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from intermediate_server.signaling.candidates import KIND_NAMES, Counts
from intermediate_server.types import Address
from intermediate_server.wire.signaling import CandidateKind, ErrorCode

MAX_TEXT = 256
"""Characters of each text in a record; longer ones are cut."""


class Outcome(enum.StrEnum):
    """The outcome of a session."""

    DIRECT = "direct"
    FAILED = "failed"
    UNREPORTED = "unreported"
    """Both sides began and neither reported a result; clients of ztna-v1 never do."""
    UNANSWERED = "unanswered"
    REFUSED = "refused"


class Reason(enum.StrEnum):
    """The reason of an outcome, as far as the relay can know it."""

    DIRECT = "direct"
    UNREPORTED = "unreported"
    UNANSWERED = "unanswered"
    OFF = "off"
    POLICY = "policy"
    NOT_REGISTERED = "not_registered"
    NO_CONNECTOR = "no_connector"
    DRAINING = "draining"
    BUSY = "busy"
    INVALID = "invalid"
    ADDRESS = "address"
    LEARNED = "learned"
    NO_CANDIDATES = "no_candidates"
    NO_COMMON_FAMILY = "no_common_family"
    NOTHING_ARRIVED = "nothing_arrived"
    ONE_WAY = "one_way"
    PEER_NOT_READING = "peer_not_reading"
    AGENT_GONE = "agent_gone"
    CONNECTOR_GONE = "connector_gone"
    ENDED = "ended"
    REVOKED = "revoked"


PROBABLY_DIRECT = "probably direct, since the agent was sent packets for 10 s and sent none through the relay"
"""What traffic tells of a session that nobody reports about."""

SENTENCES: dict[Reason, str] = {
    Reason.DIRECT: "The agent sends its packets directly to the connector",
    Reason.UNREPORTED: "Neither side reported a result; clients of ztna-v1 never do",
    Reason.UNANSWERED: "The connector did not answer in 5 s",
    Reason.OFF: "Direct paths between such clients are switched off at this relay",
    Reason.POLICY: "The policy does not allow a direct path for this service",
    Reason.NOT_REGISTERED: "The connection is not registered as an agent of this service",
    Reason.NO_CONNECTOR: "The service has no connector",
    Reason.DRAINING: "The relay is about to stop",
    Reason.BUSY: "The relay or one of the two sides has too many sessions",
    Reason.INVALID: "The offer names no service",
    Reason.ADDRESS: "The agent's inner address is shared with another; its packets need the relay's translation",
    Reason.LEARNED: 'Inner addresses are learned here (inner-addresses = "off"), so direct answers would find no agent',
    Reason.NO_CANDIDATES: "The connector told no usable address",
    Reason.NO_COMMON_FAMILY: "One side told only IPv4 addresses, the other only IPv6",
    Reason.NOTHING_ARRIVED: "No probe arrived either way; a firewall may drop UDP between the two",
    Reason.ONE_WAY: "Probes arrive at the connector only",
    Reason.PEER_NOT_READING: "One side does not read its signaling stream",
    Reason.AGENT_GONE: "The agent's connection closed",
    Reason.CONNECTOR_GONE: "The connector's connection closed",
    Reason.ENDED: "One side ended the session",
    Reason.REVOKED: "Access was withdrawn",
}
"""The sentence of each reason, without its full stop."""

CODES = {
    Reason.INVALID: ErrorCode.INVALID,
    Reason.NO_CONNECTOR: ErrorCode.NO_CONNECTOR,
    Reason.NOT_REGISTERED: ErrorCode.NO_CONNECTOR,
    Reason.CONNECTOR_GONE: ErrorCode.NO_CONNECTOR,
}
"""Codes of the Errors that the agent is told a reason by; all others are ``REJECTED``."""

REFUSALS = frozenset(
    {
        Reason.OFF,
        Reason.POLICY,
        Reason.NOT_REGISTERED,
        Reason.NO_CONNECTOR,
        Reason.DRAINING,
        Reason.BUSY,
        Reason.INVALID,
        Reason.ADDRESS,
        Reason.LEARNED,
    }
)
"""Reasons for which the relay refuses an offer."""


def explain(
    ended_by: Reason, *, started: bool, agent: bool | None, connector: bool | None, common_family: bool
) -> tuple[Outcome, Reason]:
    """The outcome of a session and the one reason for it.

    ``ended_by`` is its end as the book saw it, never one of the four reasons that only reports give. ``started`` says
    whether both sides were told to begin, ``common_family`` whether both told addresses of one IP version. ``agent``
    and ``connector`` are their reports of success, None where there is none. Reports weigh more than the end, and the
    agent's more than the connector's: the direct path is the agent's way.
    """
    if not started:
        if ended_by is Reason.UNANSWERED:
            return Outcome.UNANSWERED, ended_by
        return Outcome.REFUSED if ended_by in REFUSALS else Outcome.FAILED, ended_by
    if agent or (connector and agent is None):
        return Outcome.DIRECT, Reason.DIRECT
    if connector:
        return Outcome.FAILED, Reason.ONE_WAY
    if agent is False or connector is False:
        return Outcome.FAILED, Reason.NOTHING_ARRIVED if common_family else Reason.NO_COMMON_FAMILY
    if ended_by is Reason.UNREPORTED:
        return Outcome.UNREPORTED, Reason.UNREPORTED if common_family else Reason.NO_COMMON_FAMILY
    if ended_by in (Reason.AGENT_GONE, Reason.CONNECTOR_GONE):
        return Outcome.UNREPORTED, ended_by
    return Outcome.FAILED, ended_by


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two sides of a session."""

    identity: str | None
    """None for an anonymous one."""
    address: Address
    """Its observed address."""
    candidates: Counts | None
    """None where none were told to the other side."""
    report: bool | None
    """The success it reported, if it did."""
    kind: str = "v1"
    """The protocol that it speaks."""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "identity": self.identity,
            "kind": self.kind,
            "address": str(self.address),
            "candidates": None if self.candidates is None else self.candidates.as_dict(),
            "report": self.report,
        }


@dataclass(frozen=True, slots=True)
class Record:
    """A signaling session that has ended; at most 4 KiB as JSON."""

    began: float
    """Unix time of the offer."""
    session: int
    """The agent's id."""
    service: str
    agent: Side
    connector: Side | None
    """None where no connector was asked."""
    answered_ms: int | None
    """From the offer to the connector's answer."""
    started_ms: int | None
    """From the offer to StartPunching."""
    ended_ms: int
    working: Address | None
    """The address that the agent, or else the connector, reported to work."""
    working_kind: CandidateKind | None
    """Its kind, where the other side was told it."""
    outcome: Outcome
    reason: Reason
    detail: str
    """More about the reason, such as the text of an Error; may be empty."""

    @property
    def sentence(self) -> str:
        """The reason as a sentence for people."""
        return f"{SENTENCES[self.reason]}: {self.detail}" if self.detail else SENTENCES[self.reason]

    def as_dict(self) -> dict[str, object]:
        """For JSON; the 64-bit id is text."""
        return {
            "began": self.began,
            "session": str(self.session),
            "service": self.service,
            "agent": self.agent.as_dict(),
            "connector": None if self.connector is None else self.connector.as_dict(),
            "answered_ms": self.answered_ms,
            "started_ms": self.started_ms,
            "ended_ms": self.ended_ms,
            "working_address": None if self.working is None else str(self.working),
            "working_kind": None if self.working_kind is None else KIND_NAMES[self.working_kind],
            "outcome": str(self.outcome),
            "reason": str(self.reason),
            "sentence": self.sentence,
        }


def printable(text: str, most: int = MAX_TEXT) -> str:
    """The text cut to so many bytes of UTF-8, with ``?`` for what is not printable."""
    cut = text[:most].encode("utf-8", "replace")[:most].decode("utf-8", "ignore")
    return "".join([char if char.isprintable() else "?" for char in cut])
