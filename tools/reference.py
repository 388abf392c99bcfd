"""Write the pages of reference that are made from code: ``python -m tools.reference``.

A unit test compares the pages with :data:`PAGES`. tools/sample_config.py makes docs/configuration.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tools.artefacts import ROOT
from tools.click_tree import PROGRAM, Command, Rows, commands
from tools.http_reference import render_http

from intermediate_server.cli import EXIT_CODES

HEADER_OF_COMMANDS = """\
# Commands

Every command with its arguments and options, made from the program by `tools/reference.py`. Each command says the same
with `--help`, and so does `man intermediate-server` where a package has installed the program. A setting that is a
switch has a second flag with `--no-` before its name.
"""
PROGRAMS = ("serve", "agent", "connector")
"""Commands whose flags are settings, which configuration.md explains."""
CHECKS = {"check-config": "serve", "agent check-config": "agent", "connector check-config": "connector"}
"""Commands that take the settings of another."""


def render_commands() -> str:
    """docs/commands.md."""
    codes = [(str(code), text) for code, text in EXIT_CODES.items()]
    parts = [HEADER_OF_COMMANDS, "## Exit codes\n", entries(codes)]
    for command in commands():
        words = command.path.split()[1:]
        name = " ".join(words)
        parts.append(f"{'#' * max(2, len(words) + 1)} {name or PROGRAM}\n")
        parts.append(f"```text\n{command.path} {command.synopsis}\n```\n")
        parts += [f"```text\n{each}\n```\n" if "\n" in each else f"{plain(each)}\n" for each in command.paragraphs]
        parts += parameters(command, name)
    return "\n".join(parts)


def parameters(command: Command, name: str) -> Iterator[str]:
    """The arguments and options of a command; settings by name alone."""
    takes_settings = name in PROGRAMS or name in CHECKS
    settings = {panel: rows for panel, rows in command.options.items() if takes_settings and panel != "Options"}
    own = [row for panel, rows in command.options.items() if panel not in settings for row in rows]
    own = [*command.arguments, *(row for row in own if row[0] != "--help")]
    if own:
        yield entries(own)
    if name in CHECKS:
        yield f"Its other flags are those of [{CHECKS[name]}](#{CHECKS[name]}).\n"
    elif settings:
        yield f"Its other flags are settings, which [configuration.md](configuration.md#{PROGRAM}-{name}) explains:\n"
        for panel, rows in settings.items():
            yield f"- {panel}: {', '.join(f'`{term.split()[0]}`' for term, _ in rows)}"
        yield ""


def entries(rows: Rows) -> str:
    """Terms with their explanations, as a list: in a table Python-Markdown shows no | in code."""
    return "".join(f"- `{term}`: {plain(meaning)}\n" for term, meaning in rows)


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*<\[])", r"\\\1", " ".join(text.split()))


PAGES = {ROOT / "docs" / "commands.md": render_commands, ROOT / "docs" / "http.md": render_http}
"""The pages, with what makes each."""


if __name__ == "__main__":
    for page, render in PAGES.items():
        page.write_text(render(), encoding="utf-8")
