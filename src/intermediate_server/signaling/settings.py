"""Settings of the signaling, and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from intermediate_server.types import Address


@dataclass(frozen=True, slots=True)
class Limits:
    """Most of everything that peers can make grow; each at least 1."""

    sessions: int = 4_096
    """Open sessions in all."""
    sessions_per_agent: int = 8
    """Open sessions of one connection as agent."""
    sessions_per_connector: int = 64
    """Open sessions of one connection as connector."""
    introduced_per_agent: int = 64
    introduced_per_connector: int = 64
    """Connections that one is introduced to at a time."""
    offers_per_second: float = 1.0
    """Offers of one connection."""
    offers_at_once: int = 8
    records: int = 1_000
    malformed: int = 16
    """Malformed messages of one connection before its signaling is ended."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the book."""

    direct: Literal["all", "own", "off"] = "all"
    """``own``: only between clients of this project; none signals yet, so it refuses all as ``off`` does."""
    private_candidates: Literal["same-network", "always"] = "same-network"
    relay_addresses: frozenset[Address] = frozenset()
    """Addresses at which this relay listens, never unspecified ones; no peer is sent there."""
    limits: Limits = field(default_factory=Limits)
