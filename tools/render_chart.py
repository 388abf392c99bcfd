"""Write what the chart of deploy/chart makes of each file of values, for tests on machines without helm.

Run it by ``make chart`` after a change of the chart. The first line of each file is the SHA-256 of all that it is made
of, so that an old one is seen without helm too.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy/chart"
VALUES = ROOT / "tests/chart/values"
RENDERED = ROOT / "tests/chart/rendered"


def main() -> None:
    """The argument is helm."""
    for values in value_files():
        rendered(values).write_text(f"{mark(values)}{render(Path(sys.argv[1]), values)}", encoding="utf-8")


def value_files() -> list[Path]:
    """The files of values that are rendered."""
    return sorted(VALUES.glob("*.yaml"))


def rendered(values: Path) -> Path:
    """The file that a file of values is rendered to."""
    return RENDERED / values.name


def mark(values: Path) -> str:
    """The first line of a rendered file."""
    found = hashlib.sha256()
    for path in sorted(path for path in CHART.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(CHART)}\n".encode() + path.read_bytes())
    found.update(values.read_bytes())
    return f"# Made by tools/render_chart.py of {found.hexdigest()}\n"


def render(helm: Path, values: Path) -> str:
    """The manifests of a release "relay" in the namespace "ztna"."""
    command: list[str | Path] = [helm, "template", "relay", CHART, "--namespace", "ztna", "--values", values]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
