"""Counts of the signaling, for metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from intermediate_server.signaling.candidates import KIND_NAMES, Counts
from intermediate_server.signaling.records import Outcome, Reason

START_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Upper bounds, in seconds, of the histogram from offer to StartPunching; one more bucket holds what is longer."""


@dataclass(slots=True)
class SignalingTotals:
    """Counts of the signaling; each has one place that increments it."""

    sessions: int = 0
    """Offers for which a connector was looked up."""
    results: Counter[Outcome] = field(default_factory=Counter)
    """Ends of sessions and refusals of offers, by outcome."""
    failures: Counter[Reason] = field(default_factory=Counter)
    """Those of them that certainly brought no direct path, by reason."""
    frames: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Frames by direction (received, sent) and message (offer, answer, start, result, error, malformed)."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Frames that had no effect, by reason: malformed, not_owner, no_session, repeated, unexpected, offer_rate."""
    streams: Counter[str] = field(default_factory=Counter)
    """Streams of clients by how they ended."""
    candidates: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Candidates by action (passed, replaced, removed, added) and kind (host, srflx, prflx, relay)."""
    start_counts: list[int] = field(default_factory=lambda: [0] * (len(START_BUCKETS) + 1))
    """Sessions by their time from offer to StartPunching; not cumulative."""
    start_seconds: float = 0.0
    """Sum of these times."""

    def started(self, seconds: float) -> None:
        """Count a session that both sides begin."""
        self.start_counts[sum(seconds > bound for bound in START_BUCKETS)] += 1
        self.start_seconds += seconds

    def ended(self, outcome: Outcome, reason: Reason) -> None:
        """Count a session that ended, or an offer that was refused."""
        self.results[outcome] += 1
        if outcome in (Outcome.FAILED, Outcome.UNANSWERED, Outcome.REFUSED):
            self.failures[reason] += 1

    def edited(self, counts: Counts) -> None:
        """Count the candidates of one side of a session."""
        for kind, count in counts.passed.items():
            self.candidates["passed", KIND_NAMES[kind]] += count
        for kind, count in counts.replaced.items():
            self.candidates["replaced", KIND_NAMES[kind]] += count
        for (kind, _), count in counts.removed.items():
            self.candidates["removed", KIND_NAMES[kind]] += count
        if counts.added:
            self.candidates["added", "srflx"] += counts.added
