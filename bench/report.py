"""Rows of figures, their table and their JSON."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from rich.console import Console
from rich.table import Table

Bound = Literal["at most", "at least"]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, measured several times."""

    name: str
    unit: str
    values: Sequence[float]
    """One for each repetition."""
    bound: Bound = "at most"
    """Which side of ``target`` is the good one."""
    target: float | None = None
    digits: int = 2
    note: str = ""
    """What a reader must know to believe the figure, such as who was the limit."""
    details: Sequence[Any] = field(default_factory=list)
    """The reports that the values were taken from."""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def reached(self) -> bool | None:
        """Whether the median is on the good side of the target; None without a target."""
        if self.target is None:
            return None
        return self.median <= self.target if self.bound == "at most" else self.median >= self.target

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "values": list(self.values),
            "bound": self.bound,
            "target": self.target,
            "reached": self.reached,
            "note": self.note,
            "details": list(self.details),
        }


def table(rows: Sequence[Row]) -> Table:
    """The rows as a person reads them."""
    out = Table(title="intermediate-server benchmark", title_justify="left")
    for heading in ("figure", "median", "lowest to highest", "unit", "target", "reached", "note"):
        out.add_column(heading, justify="right" if heading in ("median", "lowest to highest") else "left")
    for row in rows:
        shown = [f"{value:,.{row.digits}f}" for value in (row.median, min(row.values), max(row.values))]
        target = "" if row.target is None else f"{row.bound} {row.target:,g}"
        reached = {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[row.reached]
        out.add_row(row.name, shown[0], f"{shown[1]} to {shown[2]}", row.unit, target, reached, row.note)
    return out


def environment() -> dict[str, Any]:
    """What the figures depend on beside the code: processor, kernel, versions, revision."""
    root = Path(__file__).resolve().parent.parent
    model = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    revision = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "processor": model[0] if model else platform.processor(),
        "cores": len(model),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "revision": revision or "unknown",
        "rmem_max": "".join(_lines("/proc/sys/net/core/rmem_max")),
    }


def aes_speed() -> float:
    """MiB of AES-128-GCM that this core encrypts in a second of CPU time.

    Measured before and after the rows: on a virtual machine the same core is faster at one hour than at another, and
    figures of two runs compare only as far as these do.
    """
    cipher, block = AESGCM(bytes(16)), bytes(1 << 20)
    start = time.process_time()
    for number in range(200):
        cipher.encrypt(number.to_bytes(12, "big"), block, None)
    return 200 / (time.process_time() - start)


def stolen() -> tuple[int, int]:
    """Clock ticks that the hypervisor has taken from this host, and all ticks, since it started."""
    ticks = [int(field) for field in _lines("/proc/stat")[0].split()[1:9]]
    return ticks[7], sum(ticks)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def publish(
    rows: Sequence[Row],
    profiles: dict[str, list[str]],
    *,
    host: dict[str, Any],
    directory: Path,
    as_json: bool,
    quick: bool,
) -> Path:
    """Print the table (or the JSON) on stdout and write the JSON into ``directory``. Returns the path of the file."""
    now = datetime.now(UTC)
    result = {
        "time": now.isoformat(timespec="seconds"),
        "quick": quick,
        "environment": {**environment(), **host},
        "rows": [row.as_json() for row in rows],
        "profiles": profiles,
    }
    text = json.dumps(result, indent=1, allow_nan=False)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{now:%Y%m%dT%H%M%SZ}.json"
    path.write_text(text + "\n")
    if as_json:
        print(text)
        return path
    # A pipe has no width of its own; a table cut to 80 columns cannot be read.
    console = Console() if Console().is_terminal else Console(width=170)
    console.print(table(rows))
    if any("contended" in row.note for row in rows):
        console.print("contended: other programs had the generator's core at times; repeat on a quiet host")
    speeds = " and ".join(f"{speed:,.0f}" for speed in host["aes_mib_per_s"])
    print(f"host: AES-128-GCM at {speeds} MiB/s before and after, {host['stolen_percent']:.2f} % of its time stolen")
    for name, lines in profiles.items():
        print(f"profile of {name}:", *lines, sep="\n  ")
    print(f"all values: {path}")
    return path
