"""Write the manual page of the program, made from its commands: ``python -m tools.manual FILE``.

The page holds all commands, since whoever searches for an option rarely knows which of them has it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from tools.artefacts import version
from tools.click_tree import PROGRAM, Command, Rows, commands

from intermediate_server.cli import EXIT_CODES

SECTION = 1
ESCAPES = str.maketrans({"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"})
"""Characters that roff would take for an order, or for a typographic cousin that no shell understands."""
SETTINGS = """\
Each setting of serve, agent and connector is a flag, an environment variable or a key of a TOML file. The first
of these counts. The flag --idle-timeout is the variable ZTNA_IDLE_TIMEOUT for the relay, ZTNA_AGENT_IDLE_TIMEOUT and
ZTNA_CONNECTOR_IDLE_TIMEOUT for the clients, and the key idle-timeout."""
PLACES: Rows = [
    (
        "/etc/intermediate-server/config.toml",
        "Configuration of the relay, when neither --config nor ZTNA_CONFIG names another.",
    ),
    (
        "/etc/intermediate-server/agent.toml, connector.toml",
        "Configuration that the systemd units of agent and connector name.",
    ),
    ("/var/lib/intermediate-server", "State directory of the relay, in its systemd unit."),
]


def render() -> str:
    """The page in the man macros of roff."""
    program, *others = commands()
    lines = [
        f'.TH {PROGRAM.upper()} {SECTION} "" "{PROGRAM} {version()}" "User Commands"',
        ".nh",
        ".ad l",
        ".SH NAME",
        f"{text(PROGRAM)} \\- {text(program.paragraphs[0].rstrip('.'))}",
        ".SH SYNOPSIS",
        *synopsis(program),
        ".SH DESCRIPTION",
        *paragraphs([SETTINGS]),
        ".SH OPTIONS",
        *options(program),
        ".SH COMMANDS",
    ]
    for command in others:
        lines += [
            f".SS {text(command.path.removeprefix(PROGRAM + ' '))}",
            *synopsis(command),
            *paragraphs(command.paragraphs),
            *terms(command.arguments),
            *options(command),
        ]
    lines += [".SH EXIT STATUS", *terms([(str(code), meaning) for code, meaning in EXIT_CODES.items()])]
    lines += [".SH FILES", *terms(PLACES)]
    return "\n".join(lines) + "\n"


def synopsis(command: Command) -> list[str]:
    """The line of use."""
    return [".PP", f"\\fB{text(command.path)}\\fR {text(command.synopsis)}"]


def options(command: Command) -> Iterator[str]:
    """All options of a command under their headings; the first heading, Options, goes without saying."""
    for panel, rows in command.options.items():
        if panel != "Options":
            yield from (".PP", f"{text(panel)}:")
        yield from terms(rows)


def paragraphs(texts: list[str]) -> Iterator[str]:
    """Each as a paragraph of its own."""
    for each in texts:
        lines = [text(line) for line in each.splitlines()]
        yield from (".PP", *([".nf", *lines, ".fi"] if len(lines) > 1 else lines))


def terms(rows: Rows) -> Iterator[str]:
    """Each term with its explanation below it."""
    for term, meaning in rows:
        yield from (".TP", f"\\fB{text(term)}\\fR", text(meaning))


def text(plain: str) -> str:
    """Text that roff prints as it is; a dot at its beginning is no request."""
    escaped = plain.translate(ESCAPES)
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.manual", description="Write the manual page.")
    parser.add_argument("file", metavar="FILE", type=Path, help=f"such as {PROGRAM}.{SECTION}")
    parser.parse_args().file.write_text(render(), encoding="utf-8")
