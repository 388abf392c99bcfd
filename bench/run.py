"""Measure the server and print what it reaches; see ``docs/benchmark.md``.

    .venv/bin/python bench/run.py --quick

Never a test: it always ends with 0 when it could measure, whatever the figures are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a file and not as a module
    sys.path.insert(0, str(ROOT))

from bench.plan import Plan  # noqa: E402
from bench.processes import GENERATOR_CORE, SERVER_CORE, BenchmarkError, raise_file_limit  # noqa: E402
from bench.report import Row, aes_speed, publish, stolen  # noqa: E402
from bench.rows import MEASUREMENTS  # noqa: E402


def build_generator() -> Path:
    """Build ``ztna-loadgen`` in release mode and return the program. Raises ``BenchmarkError``."""
    command = ["cargo", "build", "--release", "-p", "ztna-loadgen", "--message-format=json-render-diagnostics"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if built.returncode != 0:
        raise BenchmarkError("cargo could not build the load generator; its messages are above")
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "ztna-loadgen":
            return Path(message["executable"])
    raise BenchmarkError("cargo built no program named ztna-loadgen")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench/run.py", description="Measure the server and print what it reaches.")
    parser.add_argument(
        "--quick", action="store_true", help="one repetition, shorter windows, 2,000 idle connections only"
    )
    parser.add_argument("--only", default="", help=f"some of {','.join(MEASUREMENTS)}")
    parser.add_argument("--repetitions", type=int, help="of each figure (3, with --quick 1)")
    parser.add_argument("--seconds", type=int, help="of each window (5, with --quick 3)")
    parser.add_argument("--json", action="store_true", help="print JSON on stdout in place of the table")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results", help="directory of the JSON files")
    parser.add_argument(
        "--server", type=Path, default=ROOT / ".venv" / "bin" / "intermediate-server", metavar="PROGRAM"
    )
    parser.add_argument("--loadgen", type=Path, metavar="PROGRAM", help="a built ztna-loadgen; else cargo builds it")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(MEASUREMENTS)
    for name in names:
        if name not in MEASUREMENTS:
            parser.error(f"--only {name}: not one of {', '.join(MEASUREMENTS)}")
    options.names = names
    if options.seconds is not None and not 1 <= options.seconds <= 50:
        parser.error("--seconds is from 1 to 50")
    if options.repetitions is not None and not 1 <= options.repetitions <= 100:
        parser.error("--repetitions is from 1 to 100")
    return options


def main() -> int:
    """Run the measurements; 0 when all could be made, 1 when one could not."""
    options = arguments()
    if not {SERVER_CORE, GENERATOR_CORE} <= os.sched_getaffinity(0):
        print("bench: two cores are needed, one for the server and one for the load", file=sys.stderr)
        return 1
    rows: list[Row] = []
    failed = False
    try:
        plan = Plan(
            server=[str(options.server)],
            generator=options.loadgen or build_generator(),
            repetitions=options.repetitions or (1 if options.quick else 3),
            seconds=options.seconds or (3 if options.quick else 5),
            quick=options.quick,
        )
        # The driver sleeps while a window is open; what it does then must not fall on the server's core.
        os.sched_setaffinity(0, {GENERATOR_CORE})
        raise_file_limit()
    except BenchmarkError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    speed, (taken, ticks) = aes_speed(), stolen()
    for name in options.names:
        try:
            rows.extend(MEASUREMENTS[name](plan))
        except (BenchmarkError, OSError) as error:
            print(f"bench: {name}: {error}", file=sys.stderr)
            failed = True
    if rows:
        now_taken, now_ticks = stolen()
        host = {
            "aes_mib_per_s": [round(speed), round(aes_speed())],
            "stolen_percent": round(100 * (now_taken - taken) / max(1, now_ticks - ticks), 3),
        }
        where = options.results
        publish(rows, plan.profiles, host=host, directory=where, as_json=options.json, quick=options.quick)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
