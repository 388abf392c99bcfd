"""The programs of this package as commands: run to their end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PROGRAM = (sys.executable, "-m", "intermediate_server")


PATIENCE = 60


def environment(tmp_path: Path, extra: dict[str, str] | None = None) -> dict[str, str]:
    """The tests' own environment without settings, and with a state directory nobody else uses."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ZTNA_")}
    return {
        **kept,
        "HOME": str(tmp_path),
        "STATE_DIRECTORY": str(tmp_path / "state"),
        "COLUMNS": "120",
        **(extra or {}),
    }


def run(
    tmp_path: Path, *arguments: str, env: dict[str, str] | None = None, within: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end; ``within`` begins its command line."""
    done = subprocess.run(
        [*within, *PROGRAM, *arguments],
        env=environment(tmp_path, env),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@contextmanager
def serving(
    tmp_path: Path, *arguments: str, env: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A server that listens, with the lines it has logged so far."""
    with subprocess.Popen(
        [*PROGRAM, "serve", *arguments],
        env=environment(tmp_path, env),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        lines: list[str] = []
        try:
            for line in process.stderr:
                lines.append(line)
                if "Server listening on" in line:
                    break
            else:
                raise AssertionError(f"it did not start: {lines}")
            yield process, lines
        finally:
            process.kill()
