"""The measurements, each a function from a plan to rows; ``docs/benchmark.md`` explains how to read them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.access import access
from bench.certificates import Certificates
from bench.hostile import hostile
from bench.joins import joins
from bench.limits import limits
from bench.loads import LOSS, lost_of, notes_of, relay_once, say
from bench.plan import Plan
from bench.processes import CpuUse, Generator, Server, measured
from bench.profiling import top_symbols
from bench.report import Row
from bench.signaling import hostile_signaling, signaling
from bench.tunnels import datagrams, ports, tun

RATES = (20_000, 60_000, 100_000)
STEP = 20_000
FIRST_STEP = 60_000
LAST_STEP = 600_000
BUSY = 0.95
"""Above this share of its core a process counts as the limit."""


def relay(plan: Plan) -> list[Row]:
    """CPU time for each relayed datagram at three rates."""
    rows = []
    with plan.serve(client_auth="optional") as (server, files):
        for rate in RATES:
            say(f"relay at {rate:,}/s")
            runs = [relay_once(plan, server, files, rate, plan.seconds) for _ in range(plan.repetitions)]
            reports = [report for report, _ in runs]

            def each(part: Callable[[CpuUse], float], runs: list[tuple[dict[str, Any], CpuUse]] = runs) -> list[float]:
                return [part(use) / max(1, report["window_received"]) for report, use in runs]

            behind = any(report["generator_behind"] for report in reports)
            notes = notes_of(
                reports,
                lost_of(reports),
                "the generator offered less than this rate" if behind else "",
            )
            label = f"{rate // 1000}k/s"
            target = 4.0 if rate == RATES[-1] else None
            row = Row(
                f"CPU for a datagram, {label}",
                "us",
                each(lambda u: u.total),
                target=target,
                note=notes,
                details=reports,
            )
            rows.append(row)
            rows.append(Row(f"  of it the engine, {label}", "us", each(lambda u: u.engine)))
            rows.append(Row(f"  of it Python, {label}", "us", each(lambda u: u.python), digits=3))
            if row.reached is False:
                load = ["relay", "--ca", str(files.ca), "--rate", str(rate), "--seconds", "8"]
                plan.profiles[row.name] = _profile(plan, server, load)
    return rows


def _profile(plan: Plan, server: Server, load: Sequence[str]) -> list[str]:
    say("profile")
    lines: list[str] = []
    measured(plan.generator, server, load, at_begin=lambda: lines.extend(top_symbols(server.pid, 5)))
    return lines


def highest(plan: Plan) -> list[Row]:
    """The highest rate with hardly any loss, and how late Python runs at it."""
    with plan.serve(client_auth="optional") as (server, files):
        tops = [_climb(plan, server, files) for _ in range(plan.repetitions)]
        reports = [report for _, report, _ in tops]
        row = Row(
            f"highest rate with under {LOSS} % loss",
            "datagrams/s",
            [float(rate) for rate, _, _ in tops],
            bound="at least",
            target=200_000,
            digits=0,
            note=notes_of(reports, *sorted({limit for _, _, limit in tops})),
            details=reports,
        )
        if row.reached is False:
            load = ["relay", "--ca", str(files.ca), "--rate", "200000", "--seconds", "8"]
            plan.profiles[row.name] = _profile(plan, server, load)
        return [row, *_lag(plan, server, files, int(row.median))]


def _climb(plan: Plan, server: Server, files: Certificates) -> tuple[int, dict[str, Any], str]:
    """Step up until a rate fails twice; returns the last good one, its report and who was the limit."""
    good: tuple[int, dict[str, Any]] = 0, {}
    start = RATES[-1] if plan.quick else FIRST_STEP
    rate, limit = start, ""
    while 0 < rate <= LAST_STEP:
        failed: list[dict[str, Any]] = []
        for _ in range(2):
            say(f"highest rate: {rate:,}/s")
            report, _ = relay_once(plan, server, files, rate, 2 if plan.quick else 3)
            if report["loss_percent"] < LOSS and not report["generator_behind"]:
                good = rate, report
                break
            failed.append(report)
        if len(failed) < 2:
            rate += STEP
        else:
            limit = _limit(failed)
            rate = min(rate, start) - STEP
        if limit and good[0]:
            break
    return *good, limit or "the highest rate this program tries"


def _limit(failed: Sequence[Mapping[str, Any]]) -> str:
    server = max(report["server_cpu_share"] for report in failed)
    generator = max(report["generator_cpu_share"] for report in failed)
    lost = lost_of(failed)
    if server >= BUSY:
        return "the server's core is the limit"
    if generator >= BUSY or (not lost and any(report["generator_behind"] for report in failed)):
        return f"the generator is the limit (the server used {server:.0%} of its core)"
    return f"neither core is full (server {server:.0%}, generator {generator:.0%}): {lost}"


def _lag(plan: Plan, server: Server, files: Certificates, rate: int) -> list[Row]:
    """How late the event loop ran at ``rate``."""
    if rate <= 0:
        return []
    lags = []
    for _ in range(plan.repetitions):
        say(f"event-loop lag at {rate:,}/s")
        report, _ = relay_once(plan, server, files, rate, plan.seconds, lag=True)
        lags.append(report["lag"])
    label = f"at {rate // 1000}k/s"
    return [
        Row(f"event-loop lag {label}, mean", "ms", [mean for mean, _ in lags]),
        Row(f"event-loop lag {label}, worst sample at most", "ms", [worst for _, worst in lags], digits=1),
    ]


IDLE = 2_000
"""Connections that wait beside a measured flow, to show whether its cost grows with them."""


def rtt(plan: Plan) -> list[Row]:
    """Round-trip time that the relay adds to the same echo without it, alone and beside idle connections."""
    with plan.serve(client_auth="optional") as (server, files):
        rows = _round_trips(plan, server, files, "")
        say(f"{IDLE:,} idle connections")
        idle_load = ["idle", "--ca", str(files.ca), "--connections", str(IDLE)]
        idle_peers = Generator(plan.generator, ["--server", server.address, *idle_load])
        try:
            idle_peers.wait_for("@ready")
            return [*rows, *_round_trips(plan, server, files, f", {IDLE:,} idle")]
        finally:
            idle_peers.stop()


def _round_trips(plan: Plan, server: Server, files: Certificates, beside: str) -> list[Row]:
    reports = []
    for _ in range(plan.repetitions):
        say("round trips")
        echo = ["--echo-cert", str(files.server_cert), "--echo-key", str(files.server_key)]
        load = ["rtt", "--ca", str(files.ca), "--seconds", str(min(plan.seconds, 5)), *echo]
        generator = Generator(plan.generator, ["--server", server.address, *load])
        try:
            reports.append(generator.finish())
        finally:
            generator.stop()
    rows = []
    for index, rate in enumerate(reports[0]["rates"]):
        label = f"{rate['rate'] // 1000}k/s{beside}"
        for name, title in (("added_p50_us", "p50"), ("added_p99_us", "p99")):
            values = [float(report["rates"][index][name]) for report in reports]
            measured_rows = [report["rates"][index]["relay"] for report in reports]
            row = Row(f"added round trip {title}, {label}", "us", values, digits=0, note=notes_of(measured_rows))
            rows.append(row)
    return rows


def handshakes(plan: Plan) -> list[Row]:
    """Full handshakes through Python admission, with Retry on."""
    variants: list[tuple[str, str, int, float | None, list[str]]] = [
        ("handshakes, no client certificate", "optional", 0, None, []),
        ("handshakes, mutual", "required", 256, 1500.0, []),
        ("handshakes, mutual, registered", "required", 256, None, ["--register"]),
    ]
    rows = []
    for name, auth, identities, target, more in variants:
        with plan.serve(identities=identities, client_auth=auth) as (server, files):
            load = ["handshakes", "--insecure", "--seconds", str(plan.seconds if plan.quick else 10), *more]
            load += files.client_arguments if identities else []
            runs = []
            for _ in range(plan.repetitions):
                say(name)
                report, use = measured(plan.generator, server, load)
                report["server_cpu_share"] = round(use.share, 3)
                runs.append((report, use))
            reports = [report for report, _ in runs]
            failed = sum(report["failed"] for report in reports)
            notes = notes_of(reports, _limit_of_handshakes(reports), f"{failed} FAILED" if failed else "")
            rates = [float(report["rate"]) for report in reports]
            row = Row(name, "1/s", rates, bound="at least", target=target, digits=0, note=notes, details=reports)
            rows.append(row)
            cost = [use.total / max(1, report["handshakes"]) for report, use in runs]
            python = [100 * use.python / max(1.0, use.total) for _, use in runs]
            rows.append(Row("  CPU for one", "us", cost, digits=0))
            rows.append(Row("  of it Python", "%", python, digits=0))
            if row.reached is False:
                plan.profiles[name] = _profile(plan, server, load)
    return rows


def _limit_of_handshakes(reports: Sequence[Mapping[str, Any]]) -> str:
    server = max(report["server_cpu_share"] for report in reports)
    if server >= BUSY:
        return ""
    return f"the server used {server:.0%} of its core: the generator or the round trips are the limit"


def idle(plan: Plan) -> list[Row]:
    """Memory of the server for each idle registered connection."""
    rows = []
    for count in (2_000,) if plan.quick else (2_000, 10_000):
        values, notes, reports = [], set(), []
        for _ in range(plan.repetitions):
            say(f"{count:,} idle connections")
            value, report = _idle(plan, count)
            values.append(value)
            reports.append(report)
            if report["failed"] or report["lost"]:
                notes.add(f"{report['failed']} failed, {report['lost']} lost")
        name = f"memory for an idle connection, {count:,}"
        rows.append(Row(name, "KiB", values, target=70, digits=1, note="; ".join(sorted(notes)), details=reports))
    return rows


def _idle(plan: Plan, count: int) -> tuple[float, dict[str, Any]]:
    """KiB for each connection beyond the first hundred, which pay for what a first use allocates."""
    first = 100
    with plan.serve(identities=count, client_auth="required") as (server, files):
        shared = ["--server", server.address, "idle", "--ca", str(files.ca), *files.client_arguments]
        few = Generator(plan.generator, [*shared, "--connections", str(first), "--service", "few"])
        try:
            few.wait_for("@ready")
            time.sleep(2)
            before = server.resident()
            many = Generator(plan.generator, [*shared, "--connections", str(count - first)])
            try:
                many.wait_for("@ready")
                time.sleep(2)
                after = server.resident()
                report = many.finish()
            finally:
                many.stop()
            few.finish()
        finally:
            few.stop()
    return (after - before) / 1024 / max(1, report["registered"]), {**report, "rss_before": before, "rss_after": after}


MEASUREMENTS: Mapping[str, Callable[[Plan], list[Row]]] = {
    "relay": relay,
    "highest": highest,
    "rtt": rtt,
    "handshakes": handshakes,
    "idle": idle,
    "signaling": signaling,
    "hostile-signaling": hostile_signaling,
    "access": access,
    "limits": limits,
    "hostile": hostile,
    "joins": joins,
    "ports": ports,
    "datagrams": datagrams,
    "tun": tun,
}
