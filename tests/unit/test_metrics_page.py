"""docs/metrics.md has each metric of the code with its kind and its labels, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.admin import FakeOperations

from intermediate_server.admin.metrics import DEPRECATED, SIMPLE, ServerCollector, Simple
from intermediate_server.client.metrics import exposition

ROOT = Path(__file__).resolve().parents[2]
SERVER, CLIENTS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").split("## Agents and connectors")
_ROW = re.compile(r"^\| `(ztna_\w+)` \| (\w+) \| (.+) \|$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Row:
    """A metric as the page has it."""

    kind: str
    text: str

    def names(self, word: str) -> bool:
        """Whether a label or a value of one is there."""
        return f"`{word}`" in self.text


def rows(page: str) -> dict[str, Row]:
    found = _ROW.findall(page)
    made = {name: Row(kind, text) for name, kind, text in found}
    assert len(made) == len(found), "each once"
    return made


def families() -> Iterator[Metric]:
    """Every family of a server that has a certificate and a revocation list."""
    operations = FakeOperations()
    operations.state.certificate_not_after = operations.state.crl_next_update = datetime(2030, 1, 1, tzinfo=UTC)
    yield from ServerCollector(operations).collect()


def exposed(metric: Metric) -> str:
    """The name of a family in the text format."""
    return f"{metric.name}_total" if metric.type == "counter" else metric.name


def test_the_metrics_of_a_server() -> None:
    kinds = {exposed(metric): metric.type.replace("unknown", "untyped") for metric in families()}
    assert {name: row.kind for name, row in rows(SERVER).items()} == kinds


@pytest.mark.parametrize("metric", list(families()), ids=exposed)
def test_the_labels_of_a_metric(metric: Metric) -> None:
    name, former = exposed(metric), {old: new for new, old in DEPRECATED.items()}
    row = rows(SERVER)[name]
    if name in former:
        assert row.text == f"Deprecated: `{former[name]}`."
        return
    labels = getattr(metric, "_labelnames", ())
    assert [label for label in labels if not row.names(label)] == []


@pytest.mark.parametrize(
    "simple", [each for each in SIMPLE if each.label and each.label != "reason"], ids=lambda simple: simple.name
)
def test_the_values_of_a_label(simple: Simple) -> None:
    """Reasons are on a page of their own: test_drops_page.py."""
    row = rows(SERVER)[simple.name]
    assert [value for value, _ in simple.sources if not row.names(value)] == []


def test_the_metrics_of_agents_and_connectors() -> None:
    declared = (ROOT / "crates/netstack/src/counters.rs").read_text(encoding="utf-8")
    counters = re.findall(r"^    (\w+),$", declared.partition("\ncounters! {")[2].partition("\n}")[0], re.MULTILINE)
    text = exposition(
        {
            "connected": True,
            "silent": False,
            "connects": 1,
            "services": {"web": "registered"},
            "certificate_ends": "2030-01-01",
            **dict.fromkeys(("rtt_ms", "mtu", "sent_packets", "lost_packets", "sent_bytes", "received_bytes"), 1),
            "tunnel": {**dict.fromkeys(counters, 1), "drop_detached": 1},
        }
    )
    shown = rows(CLIENTS)
    found = {exposed(metric): metric for metric in text_string_to_metric_families(text)}
    assert {name: row.kind for name, row in shown.items()} == {name: metric.type for name, metric in found.items()}
    for name, metric in found.items():
        labels = {label for sample in metric.samples for label in sample.labels}
        assert [label for label in labels if not shown[name].names(label)] == []
