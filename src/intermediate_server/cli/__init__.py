"""The command line: ``intermediate-server COMMAND``.

Each group of commands has a module, which is imported only for its commands: ``--version`` does not wait for the
certificate code, nor ``pki`` for the engine.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from intermediate_server import hangup
from intermediate_server.errors import BASE, CertificateError, ConfigError, IntermediateServerError, needs

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 128 + 2
EXIT_CODES = {
    OK: "Done. A server, agent or connector was told to end.",
    FAILED: "Failed while running, or the question was answered with no: not connected, not well, a case that fails.",
    USAGE: "Wrong flags, configuration, certificates, token or profile; nothing was started.",
    INTERRUPTED: "Interrupted by Ctrl-C (SIGINT).",
}
"""What each exit code of the program means; a command whose code means more says so in its help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors raised on purpose become one line on stderr."""
    _hold_standard_streams()
    if argv is None and not sys.warnoptions:
        # They are for developers, such as that of cryptography about a CA with the serial number 0.
        warnings.simplefilter("ignore")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in (["--version"], ["-V"]):
        print(f"intermediate-server {version()}")
        return OK
    if arguments[:1] in (["serve"], ["agent"], ["connector"]):
        hangup.hold()
    try:
        # An environment whose packages were not installed, or were removed, beside the program.
        with needs(BASE):
            from intermediate_server.cli.app import run  # noqa: PLC0415  click takes longer than --version may

            run(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else OK if stop.code is None else FAILED
    except (ConfigError, CertificateError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except IntermediateServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return OK


def _hold_standard_streams() -> None:
    """Open /dev/null in place of a closed standard stream.

    Otherwise the next file to be opened would get its number and all output to the stream, such as a panic's text.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115  for good


def version() -> str:
    """The version of the installed package."""
    from importlib import metadata  # noqa: PLC0415  only --version needs it

    try:
        return metadata.version("intermediate-server")
    except metadata.PackageNotFoundError:
        return "not installed"
