"""Route changes: the registry's requests to the engine, as plain values.

They mirror the engine's commands without needing the compiled module, so that the registry is testable alone;
the session layer translates them one to one.
"""

from __future__ import annotations

from dataclasses import dataclass

from intermediate_server.types import ConnectionId

LEAVING = 2**32 - 1
"""The rank of a connection that a newer one with the same key has replaced: what it still sends back is relayed."""


@dataclass(frozen=True, slots=True)
class Target:
    """One connector of a service."""

    conn: ConnectionId
    rank: int
    """Lower is preferred; the healthy targets of the lowest rank share the agents. ``LEAVING`` is never chosen."""
    key: int
    """Names the connector for rendezvous hashing, below 2**64; the same identity has the same key."""


@dataclass(frozen=True, slots=True)
class SetService:
    """Replace the connectors of a service; no targets removes it."""

    service: str
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class SetAgent:
    """Replace what an agent may reach; no services takes everything away."""

    conn: ConnectionId
    services: tuple[str, ...]
    """In order of registration: a bare IP packet goes to the first."""
    identity: bytes | None
    """SHA-256 of the proven public key; None for an anonymous agent."""


Change = SetService | SetAgent


@dataclass(frozen=True, slots=True)
class RegistryFull:
    """A registration that was not taken because a limit is reached; nothing changed.

    A value and not an exception: a peer can cause it at will, so it is an ordinary outcome.
    """

    limit: str
    """The limit's name: ``services_per_connection`` or ``services``."""
    maximum: int

    def __str__(self) -> str:
        return f"{self.limit} is at its maximum of {self.maximum}"
