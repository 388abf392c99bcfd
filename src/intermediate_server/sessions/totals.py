"""Counts of the sessions, for health and metrics."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class SessionTotals:
    """Counts of the sessions; each has one place that increments it."""

    proven: int = 0
    """Live connections with a proven identity."""
    anonymous: int = 0
    """Live connections without a client certificate."""
    registrations: int = 0
    """Registrations granted; a repeated acknowledgement does not count."""
    denied: int = 0
    """Registrations denied: by the policy, unreadable, or over a limit."""
    control_ignored: int = 0
    """Registration messages too short or wrong in length."""
    control_dropped: int = 0
    """Registration messages dropped because the connection sent more than it may."""
    never_registered: int = 0
    """Connections closed because they registered nothing in time."""
    address_reports: int = 0
    """QAD messages sent."""
    revoked: dict[str, int] = field(default_factory=lambda: _causes("policy", "expired", "connections", "volume"))
    """Registrations revoked, by cause."""
    over_limit: dict[str, int] = field(default_factory=lambda: _causes("connections", "volume"))
    """Registrations that the policy granted and a limit denied, by limit."""
    rejected: dict[str, int] = field(
        default_factory=lambda: _causes("revoked", "expired", "unreadable", "anonymous", "authority", "connections")
    )
    """Connections rejected after their handshake, by cause."""
    disconnected: dict[str, int] = field(
        default_factory=lambda: _causes(
            "revoked", "expired", "anonymous", "authority", "access", "replaced", "operator"
        )
    )
    """Live connections closed because access ended or an operator asked for it, by cause."""


def _causes(*causes: str) -> dict[str, int]:
    return dict.fromkeys(causes, 0)
