"""Metric families with labels, as Prometheus has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Kind = type[CounterMetricFamily] | type[GaugeMetricFamily]


def family(
    kind: Kind, name: str, text: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], float]]
) -> Metric:
    """A family with several labels; each sample has its label values and its value."""
    made = kind(name, text, labels=labels)
    for values, value in samples:
        made.add_metric(list(values), value)
    return made


def labelled(kind: Kind, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """A family with one label, from its values by label value."""
    return family(kind, name, text, [label], (([key], value) for key, value in values.items()))
