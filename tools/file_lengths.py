"""Refuse a source file that is too long to be read in one go."""

import sys
from pathlib import Path

SOURCES = ("crates", "src", "tests", "bench")
MAX_LINES = 400


def main() -> int:
    """Print the long files; the exit status says whether there are any."""
    faults = [fault for top in SOURCES for fault in long_files(Path(top))]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def long_files(top: Path) -> list[str]:
    """One line for each source file below `top` that is above the limit."""
    faults = []
    for file in sorted(file for file in top.rglob("*") if file.suffix in {".rs", ".py"}):
        lines = len(file.read_text().splitlines())
        if lines > MAX_LINES:
            faults.append(f"{file}: {lines} lines; at most {MAX_LINES} are allowed")
    return faults


if __name__ == "__main__":
    sys.exit(main())
