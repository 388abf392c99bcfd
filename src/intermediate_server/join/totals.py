"""Counts of joins, renewals and ends of identities."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class JoinTotals:
    """What the issuer has answered since the start, and what the store holds."""

    joins: Counter[str] = field(default_factory=Counter)
    """By outcome: ``ok``, ``repeated``, ``pending`` or the cause of the refusal; of unreadable requests, too."""
    renewals: Counter[str] = field(default_factory=Counter)
    """By outcome: ``ok``, ``late``, ``repeated`` or the cause of the refusal."""
    ended: Counter[str] = field(default_factory=Counter)
    """Identities ended here, by cause: ``left`` or ``ephemeral``."""
    identities: dict[str, int] = field(default_factory=dict)
    """Identities by state at the last look: ``live``, ``expired``, ``ended``."""

    def count(self, request: str, result: str) -> None:
        """Count an answer, as an outcome of the issuer names it."""
        outcome = "ok" if result == "issued" else result
        if request == "late-renew" and result == "issued":
            outcome = "late"
        if request in ("renew", "late-renew"):
            self.renewals[outcome] += 1
        elif request != "leave":
            self.joins[outcome] += 1
