"""One load on the relay: run, measured, and told with what casts doubt on it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bench.certificates import Certificates
from bench.plan import Plan
from bench.processes import BenchmarkError, CpuUse, Metrics, Server, measured

LOSS = 0.5
"""Percent of packets that may be lost at the highest rate."""
WAITED = 0.05
"""Above this share of time in which another program had the generator's core, a figure is marked."""
_LAG = "ztna_event_loop_lag_seconds"
_DROPS = "ztna_drops_total"


def say(text: str) -> None:
    """Progress, for whoever watches."""
    print(text, file=sys.stderr, flush=True)


def notes_of(reports: Sequence[Mapping[str, Any]], *more: str) -> str:
    """What casts doubt on a figure, once, in words."""
    notes = [text for text in more if text]
    if any(report.get("generator_wait_share", 0) > WAITED for report in reports):
        notes.append("contended")
    if any(report.get("corrupt", 0) for report in reports):
        notes.append("CORRUPT packets arrived")
    return "; ".join(notes)


def relay_once(
    plan: Plan, server: Server, files: Certificates, rate: int, seconds: int, *, lag: bool = False
) -> tuple[dict[str, Any], CpuUse]:
    """Relay at a rate; the generator's report, with drops by reason, and the CPU time.

    With ``lag`` that of the event loop is in the report, and the CPU time of asking for it in the other.
    """
    tunnels: list[Metrics] = []

    def scrape() -> None:
        tunnels.append(server.metrics())

    before = server.metrics()
    load = ["relay", "--ca", str(files.ca), "--rate", str(rate), "--seconds", str(seconds)]
    report, use = measured(
        plan.generator, server, load, at_begin=scrape if lag else None, at_end=scrape if lag else None
    )
    report["server_cpu_share"] = round(use.share, 3)
    if lag:
        report["lag"] = _lag(*tunnels)
        report["lag_p99"] = lag_quantile(tunnels[0], tunnels[-1], 0.99)
    dropped = {
        dict(labels).get("reason", name): int(value - before.get((name, labels), 0.0))
        for (name, labels), value in server.metrics().items()
        if name == _DROPS
    }
    report["drops"] = {reason: count for reason, count in dropped.items() if count > 0}
    return report, use


def _lag(before: Metrics, after: Metrics) -> tuple[float, float]:
    """How many ms late the event loop ran in between: mean, and upper bound of the worst sample's bucket."""
    delta = {key: value - before.get(key, 0.0) for key, value in after.items() if key[0].startswith(_LAG)}
    samples = delta.get((f"{_LAG}_count", frozenset()), 0.0)
    if samples <= 0:
        raise BenchmarkError(f"/metrics has no histogram {_LAG} that grows")
    buckets = sorted(
        (float(dict(labels)["le"]), count) for (name, labels), count in delta.items() if name == f"{_LAG}_bucket"
    )
    # The open bucket has no upper bound; its lower one is all that is known.
    bounds = [bound for bound, count in buckets if count >= samples]
    worst = bounds[0] if bounds and bounds[0] != float("inf") else buckets[-2][0]
    return 1000 * delta[f"{_LAG}_sum", frozenset()] / samples, 1000 * worst


def lag_quantile(before: Metrics, after: Metrics, quantile: float) -> float:
    """The upper bound in ms of the bucket in which this share of the event loop's timers ran in between."""
    delta = {
        float(dict(labels)["le"]): count - before.get((name, labels), 0.0)
        for (name, labels), count in after.items()
        if name == f"{_LAG}_bucket"
    }
    samples = delta.get(float("inf"), 0.0)
    if samples <= 0:
        raise BenchmarkError(f"/metrics has no histogram {_LAG} that grows")
    return 1000 * min(bound for bound, count in delta.items() if count >= quantile * samples)


def lost_of(reports: Sequence[Mapping[str, Any]]) -> str:
    """How much was lost, and where the server says it went; packets it never saw were lost between the sockets."""
    worst = max(reports, key=lambda report: float(report["loss_percent"]))
    if worst["loss_percent"] < LOSS:
        return ""
    reasons = (
        ", ".join(f"{reason} {count:,}" for reason, count in sorted(worst["drops"].items())) or "not in the server"
    )
    return f"lost {worst['loss_percent']:.2f} % ({reasons})"
