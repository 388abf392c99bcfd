"""What introductions cost: the CPU of a session, the delay of the event loop, and the memory of those that are open."""

from __future__ import annotations

from bench.loads import lag_quantile, notes_of, say
from bench.plan import Plan
from bench.processes import Metrics, measured
from bench.report import Row

OFFERS = 100
"""Offers a second, which is what the server takes of all agents together."""
LAG = 10.0
"""Milliseconds that the event loop may be late at the 99th percentile."""


def signaling(plan: Plan) -> list[Row]:
    """Offers at the highest rate that is taken, each with ten candidates, answered at once."""
    costs, python, lags, delays, notes, reports = [], [], [], [], set[str](), []
    for _ in range(plan.repetitions):
        with plan.serve(client_auth="off") as (server, files):
            say(f"{OFFERS} offers a second")
            scrapes: list[Metrics] = []

            def scrape(scrapes: list[Metrics] = scrapes) -> None:
                scrapes.append(server.metrics())

            load = ["signal", "--ca", str(files.ca), "--rate", str(OFFERS), "--seconds", str(plan.seconds)]
            report, use = measured(plan.generator, server, load, at_begin=scrape, at_end=scrape)
        reports.append(report)
        costs.append(use.total / max(1, report["offers"]))
        python.append(100 * use.python / max(1.0, use.total))
        lags.append(lag_quantile(scrapes[0], scrapes[-1], 0.99))
        delays.append(float(report["p99_ms"] or "nan"))
        if report["started"] < report["offers"]:
            notes.add(f"{report['offers'] - report['started']} of {report['offers']} NOT STARTED")
    note = notes_of(reports, *sorted(notes))
    name = f"{OFFERS} offers/s"
    return [
        Row(f"{name}, CPU for one session", "us", costs, digits=0, note=note, details=reports),
        Row("  of it Python", "%", python, digits=0),
        Row("  event-loop lag, p99 at most", "ms", lags, target=LAG, digits=1),
        Row("  offer to StartPunching, p99", "ms", delays, digits=1),
    ]
