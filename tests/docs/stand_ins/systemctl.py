"""``systemctl`` and ``journalctl`` where no systemd runs: :mod:`.manager` does what they ask for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.docs.stand_ins.manager import CONTROL
from tests.docs.stand_ins.service import JOURNAL
from tests.docs.stand_ins.units import full_name


def main(words: list[str]) -> int:
    """Run one command."""
    if os.geteuid() != 0:
        print("Failed: Interactive authentication required.", file=sys.stderr)
        return 1
    if not CONTROL.exists():
        _begin()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(CONTROL))
        with connection.makefile("rw", encoding="utf-8") as stream:
            stream.write(json.dumps(words) + "\n")
            stream.flush()
            answer = json.loads(stream.read())
    print(answer["said"], end="", file=sys.stdout if words[0] in ("status", "is-active") else sys.stderr)
    return int(answer["status"])


def journal(words: list[str]) -> int:
    """Print what a unit has printed: ``journalctl --unit U --output cat [--lines N]``."""
    options = {"--lines": "1000000", **dict(zip(words[::2], words[1::2], strict=True))}
    if options.keys() != {"--unit", "--output", "--lines"} or options["--output"] != "cat":
        print("this stand-in of journalctl knows --unit, --output cat and --lines", file=sys.stderr)
        return 2
    text = (JOURNAL / full_name(options["--unit"])).read_text(encoding="utf-8")
    print("\n".join(text.splitlines()[-int(options["--lines"]) :]))
    return 0


def _begin() -> None:
    CONTROL.parent.mkdir(parents=True, exist_ok=True)
    with Path("/run/systemd/log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "tests.docs.stand_ins.manager"],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    end = time.monotonic() + 60
    while not CONTROL.exists() and time.monotonic() < end:
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(journal(sys.argv[2:]) if sys.argv[1] == "journal" else main(sys.argv[1:]))
