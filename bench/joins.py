"""What guesses at join tokens cost the relay: nothing but a few answers a second."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.certificates import Certificates
from bench.loads import lag_quantile, notes_of, relay_once, say
from bench.plan import Plan
from bench.processes import GENERATOR_CORE, LONGEST_RUN, ROOT, Server, on_core, serving
from bench.report import Row

RATE = 20_000
"""Datagrams relayed a second."""
GUESSES = 10_000


def joins(plan: Plan) -> list[Row]:
    """Relay without guesses and beside 10,000 of them from 50 sources."""
    rows: list[Row] = []
    quiet = 0.0
    with _serve(plan) as (server, files, log):
        for guesses in (0, GUESSES):
            lost, lags, lines, outcomes, reports = [], [], [], Counter[str](), []
            for _ in range(plan.repetitions):
                say(f"{guesses:,} guesses at join tokens")
                written = len(log.read_text().splitlines())
                before = server.metrics()
                with _guessing(server, files, guesses) as ends:
                    report, _ = relay_once(plan, server, files, RATE, plan.seconds)
                lost.append(float(report["loss_percent"]))
                lags.append(lag_quantile(before, server.metrics(), 0.99))
                lines.append(float(len(log.read_text().splitlines()) - written))
                outcomes += ends
                reports.append(report)
            what = f"beside {guesses:,} guesses at join tokens" if guesses else "without guesses at join tokens"
            said = ", ".join(f"{name} {count:,}" for name, count in outcomes.most_common())
            rows += [
                Row(f"lost of 20k/s {what}", "%", lost, digits=3, note=notes_of(reports, said), details=reports),
                Row("  event-loop lag, p99", "ms", lags, target=10, digits=1),
            ]
            if guesses:
                more = [count - quiet for count in lines]
                rows.append(Row("  log lines, more than without", "", more, target=10, digits=0))
            quiet = statistics.median(lines)
    return rows


@contextmanager
def _serve(plan: Plan) -> Iterator[tuple[Server, Certificates, Path]]:
    """A server with a CA of its own, since only such a one issues; with the limits of joins that it has by default."""
    with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name:
        directory = Path(name)
        with serving(plan.server, directory, {"client-auth": "optional"}) as server:
            state = directory / "state"
            files = Certificates(directory, state / "ca.pem", state / "server.pem", state / "server.key", 0)
            yield server, files, directory / "server.log"


@contextmanager
def _guessing(server: Server, files: Certificates, guesses: int) -> Iterator[Counter[str]]:
    """Guess during the block and to the end; afterwards the result has how often each end came."""
    ends: Counter[str] = Counter()
    if guesses == 0:
        yield ends
        return
    # It gives way to the generator, whose bursts would be larger otherwise.
    command = ["nice", "-n", "19", sys.executable, "-m", "bench.guesses", str(server.port), str(files.ca), str(guesses)]
    with on_core(GENERATOR_CORE):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield ends
        answer, _ = process.communicate(timeout=LONGEST_RUN)
        ends.update(json.loads(answer))
    finally:
        process.kill()
        process.wait()
