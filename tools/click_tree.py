"""The commands of the program with their arguments and options, for documents that are made from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import click

from intermediate_server.cli.app import build

PROGRAM = "intermediate-server"

Rows = list[tuple[str, str]]
"""Terms with their explanations, both plain text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command, or a group of commands."""

    path: str
    """All of its words, such as ``intermediate-server agent status``."""
    synopsis: str
    """What follows the path: ``[OPTIONS] NAME``."""
    paragraphs: list[str]
    """Its help; the first paragraph is the summary. One with several lines keeps them."""
    arguments: Rows
    options: dict[str, Rows]
    """By the headings of ``--help``."""


def commands() -> Iterator[Command]:
    """All of the program, each group before its commands, in the order of ``--help``."""
    return _walk(build([]), None, PROGRAM)


def _paragraph(text: str) -> str:
    """In one line, or in its own lines where a backspace is the first, as in the help that click prints."""
    first, *rest = (line.strip() for line in text.strip().splitlines() or [""])
    return "\n".join(rest) if first == "\b" else " ".join(text.split())


def _walk(command: click.Command, parent: click.Context | None, name: str) -> Iterator[Command]:
    context = click.Context(command, parent=parent, info_name=name)
    arguments: Rows = []
    options: dict[str, Rows] = {}
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option):
            record = parameter.get_help_record(context)
            if record is not None:
                options.setdefault(getattr(parameter, "panel", "Options"), []).append(record)
        elif isinstance(parameter, click.Argument) and not getattr(parameter, "hidden", False):
            arguments.append((parameter.make_metavar(context), parameter.help or ""))
    yield Command(
        path=context.command_path,
        synopsis=" ".join(command.collect_usage_pieces(context)),
        paragraphs=[_paragraph(each) for each in (command.help or "").split("\n\n")],
        arguments=arguments,
        options=options,
    )
    if isinstance(command, click.Group):
        for each in sorted(command.commands):
            yield from _walk(command.commands[each], context, each)
