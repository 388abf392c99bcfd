"""The metrics of signaling: introductions, their frames and candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from intermediate_server.admin.service_metrics import fill
from intermediate_server.signaling import START_BUCKETS, Outcome, Reason, SignalingTotals, State


def signaling_metrics(totals: SignalingTotals, states: Mapping[State, int]) -> Iterator[Metric]:
    """Every family; ``states`` says how many sessions are in each state, and how many pairs are introduced."""
    yield CounterMetricFamily(
        "ztna_signaling_sessions_total", "Offers for which a connector was looked up.", value=totals.sessions
    )
    for name, text, labels, counts in (
        (
            "ztna_signaling_results_total",
            "Introductions by result.",
            ["result"],
            {(str(outcome),): totals.results[outcome] for outcome in Outcome},
        ),
        (
            "ztna_signaling_failures_total",
            "Introductions that brought no direct path for certain, by reason.",
            ["reason"],
            {(str(reason),): totals.failures[reason] for reason in Reason},
        ),
        (
            "ztna_signaling_frames_total",
            "Signaling frames by direction and message.",
            ["direction", "message"],
            totals.frames,
        ),
        (
            "ztna_signaling_dropped_total",
            "Signaling frames without effect, by reason.",
            ["reason"],
            {(reason,): count for reason, count in totals.dropped.items()},
        ),
        (
            "ztna_signaling_streams_ended_total",
            "Signaling streams of clients by how they ended.",
            ["end"],
            {(end,): count for end, count in totals.streams.items()},
        ),
        (
            "ztna_candidates_total",
            "Candidates by what the relay did with them, and kind.",
            ["action", "kind"],
            totals.candidates,
        ),
    ):
        counter = CounterMetricFamily(name, text, labels=labels)
        fill(counter, counts.items())
        yield counter
    gauge = GaugeMetricFamily("ztna_signaling_sessions", "Open introductions, and introduced pairs.", labels=["state"])
    fill(gauge, (((state.value,), count) for state, count in states.items()))
    yield gauge
    bounds = [*map(str, START_BUCKETS), "+Inf"]
    yield HistogramMetricFamily(
        "ztna_signaling_start_seconds",
        "From an offer to its StartPunching.",
        buckets=list(zip(bounds, accumulate(totals.start_counts), strict=True)),
        sum_value=totals.start_seconds,
    )
