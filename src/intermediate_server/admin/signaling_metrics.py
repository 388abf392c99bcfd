"""The metrics of signaling: introductions, their frames and candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from intermediate_server.admin.families import family, labelled
from intermediate_server.signaling import START_BUCKETS, Outcome, Reason, SignalingTotals, State


def signaling_metrics(totals: SignalingTotals, states: Mapping[State, int]) -> Iterator[Metric]:
    """Every family; ``states`` says how many sessions are in each state, and how many pairs are introduced."""
    yield CounterMetricFamily(
        "ztna_signaling_sessions_total", "Offers for which a connector was looked up.", value=totals.sessions
    )
    for name, text, label, counts in (
        (
            "ztna_signaling_results_total",
            "Introductions by result.",
            "result",
            {str(outcome): totals.results[outcome] for outcome in Outcome},
        ),
        (
            "ztna_signaling_failures_total",
            "Introductions that brought no direct path for certain, by reason.",
            "reason",
            {str(reason): totals.failures[reason] for reason in Reason},
        ),
        ("ztna_signaling_dropped_total", "Signaling frames without effect, by reason.", "reason", totals.dropped),
        (
            "ztna_signaling_streams_ended_total",
            "Signaling streams of clients by how they ended.",
            "end",
            totals.streams,
        ),
    ):
        yield labelled(CounterMetricFamily, name, text, label, counts)
    yield family(
        CounterMetricFamily,
        "ztna_signaling_frames_total",
        "Signaling frames by direction and message.",
        ["direction", "message"],
        totals.frames.items(),
    )
    yield family(
        CounterMetricFamily,
        "ztna_candidates_total",
        "Candidates by what the relay did with them, and kind.",
        ["action", "kind"],
        totals.candidates.items(),
    )
    yield labelled(
        GaugeMetricFamily,
        "ztna_signaling_sessions",
        "Open introductions, and introduced pairs.",
        "state",
        {state.value: count for state, count in states.items()},
    )
    bounds = [*map(str, START_BUCKETS), "+Inf"]
    yield HistogramMetricFamily(
        "ztna_signaling_start_seconds",
        "From an offer to its StartPunching.",
        buckets=list(zip(bounds, accumulate(totals.start_counts), strict=True)),
        sum_value=totals.start_seconds,
    )
