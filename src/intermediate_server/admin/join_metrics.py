"""The metrics of joining: what the issuer answers, and the identities it knows."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from intermediate_server.admin.families import labelled
from intermediate_server.join.totals import JoinTotals


def join_metrics(totals: JoinTotals) -> Iterator[Metric]:
    """Every family."""
    for name, text, label, counts in (
        ("ztna_joins_total", "Requests to join by what was answered.", "outcome", totals.joins),
        ("ztna_renewals_total", "Requests to renew a certificate by what was answered.", "outcome", totals.renewals),
        ("ztna_identities_ended_total", "Identities that left or were away for too long.", "cause", totals.ended),
    ):
        yield labelled(CounterMetricFamily, name, text, label, counts)
    yield labelled(GaugeMetricFamily, "ztna_identities", "Identities by state.", "state", totals.identities)
