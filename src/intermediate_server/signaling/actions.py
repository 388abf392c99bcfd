"""The actions that the book of sessions asks of its caller; the engine has a command for each but the last."""

from __future__ import annotations

from dataclasses import dataclass

from intermediate_server.signaling.records import Record
from intermediate_server.types import ConnectionId, Peer


@dataclass(frozen=True, slots=True)
class Send:
    """Send one frame."""

    conn: ConnectionId
    payload: bytes
    to_agent: bool
    """Whether it is for the connection as an agent, which reads no stream but the one that it offers on."""


@dataclass(frozen=True, slots=True)
class LookUpRoute:
    """Look up the connector to which the agent's packets for a service go, and keep to that choice."""

    request: int
    """Given back with the answer."""
    agent: ConnectionId
    service: str


@dataclass(frozen=True, slots=True)
class Introduce:
    """From now on answers of the connector to packets that came directly go to this agent."""

    agent: ConnectionId
    connector: ConnectionId


@dataclass(frozen=True, slots=True)
class Separate:
    """The end of an ``Introduce``; either connection may have closed."""

    agent: ConnectionId
    connector: ConnectionId


@dataclass(frozen=True, slots=True)
class EndSignaling:
    """Condemn the signaling stream of a connection, which has sent too many malformed messages."""

    conn: ConnectionId


@dataclass(frozen=True, slots=True)
class Started:
    """Both sides of a session were told to begin; its serial is that of ``Book.probably_direct``."""

    serial: int
    agent: ConnectionId


@dataclass(frozen=True, slots=True)
class Ended:
    """A session has ended or an offer was refused: for one log line."""

    agent: Peer
    """As it was when it offered; its connection may be the one that has closed."""
    record: Record


Action = Send | LookUpRoute | Introduce | Separate | EndSignaling | Started | Ended
