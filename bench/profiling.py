"""Where the server's time goes, by ``perf``, when a CPU figure falls short of its target."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from bench.processes import GENERATOR_CORE, on_core

_LINE = re.compile(r"\s*(\d+\.\d+)%\s+(\S+)\s+(.+?)\s*$")
TOP = 15


def top_symbols(pid: int, seconds: int) -> list[str]:
    """The symbols a process spends most time in, one line each with its share; one line of excuse without ``perf``.

    Hardware cycles where the host has them, else the kernel's CPU clock, which sees the same places less sharply.
    """
    with tempfile.TemporaryDirectory(prefix="bench-perf-") as directory:
        data = Path(directory) / "perf.data"
        excuse = ""
        for event in ("cycles", "cpu-clock"):
            command = ["perf", "record", "-q", "-g", "-e", event, "-o", str(data), "-p", str(pid)]
            try:
                with on_core(GENERATOR_CORE):
                    recorded = subprocess.run(
                        [*command, "--", "sleep", str(seconds)],
                        capture_output=True,
                        text=True,
                        timeout=seconds + 30,
                        check=False,
                    )
            except (FileNotFoundError, subprocess.TimeoutExpired) as error:
                return [f"no profile: {error}"]
            lines = _report(data) if recorded.returncode == 0 else []
            if lines:
                return [f"(event {event})", *lines]
            excuse = recorded.stderr.strip()[-300:]
        return [f"no profile: {excuse}"]


def _report(data: Path) -> list[str]:
    command = ["perf", "report", "-i", str(data), "--stdio", "--no-children", "-g", "none", "-F", "overhead,dso,sym"]
    report = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    found = [match for line in report.splitlines() if (match := _LINE.match(line))]
    return [f"{share:>6} %  {symbol}  ({dso})" for share, dso, symbol in (match.groups() for match in found[:TOP])]
