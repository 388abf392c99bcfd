"""Commands made from functions: annotations of the parameters become options, the docstring becomes the help.

A parameter is declared as ``name: Annotated[str | None, Option("--name", help=...)] = None``. Its type, ``str``,
``int``, ``Path``, ``bool`` for a switch or ``list[str]`` for what may be repeated, says how click reads it.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from click import Context, echo
from click.exceptions import Exit
from click.shell_completion import CompletionItem

from intermediate_server import cli
from intermediate_server.errors import ConfigError

__all__ = ["Argument", "Context", "Exit", "Group", "Option", "echo"]

F = TypeVar("F", bound=Callable[..., Any])

_FILES = {"FILE", "PATH"}
"""Metavars of values that are files."""
_WIDTH = 120
"""Widest help, in columns; a narrower terminal has its own width."""


class Option:
    """A parameter with a flag."""

    def __init__(self, *flags: str, metavar: str | None = None, help: str = "", panel: str = "Options") -> None:
        """``panel`` groups options in the help."""
        self.flags = flags
        self.metavar = metavar
        self.help = help
        self.panel = panel

    def made(self, name: str, kind: Any, default: Any) -> click.Parameter:
        """The option of click."""
        required = default is inspect.Parameter.empty
        given = {"required": True} if required else {"default": default}
        return _Option([*self.flags, name], panel=self.panel, metavar=self.metavar, help=self.help, **given, **kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """A parameter without a flag."""

    metavar: str
    help: str | None = None
    hidden: bool = False

    def made(self, name: str, kind: Any, default: Any) -> click.Parameter:
        """The argument of click."""
        many = kind.pop("multiple", False)
        kind |= {"nargs": -1} if many else {}
        required = default is inspect.Parameter.empty
        given = {} if required or many else {"default": default}
        return _Argument(
            [name], metavar=self.metavar, help=self.help, hidden=self.hidden, required=required, **given, **kind
        )


class Group(click.Group):
    """Commands under one name."""

    def __init__(self, name: str | None = None, *, help: str = "", **settings: Any) -> None:
        super().__init__(name, help=help, **_common(settings))

    def command(self, name: str) -> Callable[[F], F]:  # type: ignore[override]  # ours takes a signature
        """Decorate a function: it becomes the command ``name`` of this group."""

        def add(function: F) -> F:
            self.add_command(_Command(name, **_from_function(function)))
            return function

        return add

    def invoke(self, ctx: Context) -> Any:
        """Run the command; Ctrl-C ends it with the code that shells know, where click has 1."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Exit(cli.INTERRUPTED) from None

    def add_group(self, group: Group, name: str) -> None:
        """Put a group of commands into this one."""
        self.add_command(group, name)

    def format_options(self, ctx: Context, formatter: click.HelpFormatter) -> None:
        """Options by their panels, then the commands."""
        _format_panels(self, ctx, formatter)
        self.format_commands(ctx, formatter)


def running(function: Callable[..., Any]) -> Group:
    """A group that runs ``function`` when none of its commands is named."""

    def unless_other(context: Context, /, **given: Any) -> None:
        if context.invoked_subcommand is None:
            made["callback"](**given)

    made = _from_function(function)
    return Group(**{**made, "callback": click.pass_context(unless_other)}, invoke_without_command=True)


class _Command(click.Command):
    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name, **_common(settings))

    def format_options(self, ctx: Context, formatter: click.HelpFormatter) -> None:
        _format_panels(self, ctx, formatter)


class _Option(click.Option):
    """An option; one with a single value refuses a second, which would win in silence."""

    def __init__(self, declared: Sequence[str], *, panel: str, **settings: Any) -> None:
        super().__init__(declared, **settings)
        self.panel = panel
        self._once = not (self.multiple or self.is_flag or self.count)

    def shell_complete(self, ctx: Context, incomplete: str) -> list[CompletionItem]:
        return _complete(self, incomplete) or super().shell_complete(ctx, incomplete)

    def add_to_parser(self, parser: Any, ctx: Context) -> None:
        self.multiple = self.multiple or self._once
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.multiple = self.multiple and not self._once

    def consume_value(self, ctx: Context, opts: Any) -> Any:
        values = opts.get(self.name)
        if self._once and isinstance(values, list):
            if len(values) > 1:
                flag = max(self.opts, key=len)
                raise ConfigError(
                    f"{flag} is given {len(values)} times, with {' and '.join(map(str, values))}: give one"
                )
            opts = {**opts, self.name: values[0]}
        return super().consume_value(ctx, opts)


class _Argument(click.Argument):
    def __init__(self, declared: Sequence[str], *, hidden: bool, **settings: Any) -> None:
        super().__init__(declared, **settings)
        self.hidden = hidden

    def shell_complete(self, ctx: Context, incomplete: str) -> list[CompletionItem]:
        return _complete(self, incomplete) or super().shell_complete(ctx, incomplete)

    def get_usage_pieces(self, ctx: Context) -> list[str]:
        return [] if self.hidden else super().get_usage_pieces(ctx)


def _complete(parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What a shell may put for a value whose metavar names words (``agent|connector``) or a file."""
    alternatives = (parameter.metavar or "").strip("[]").split("|")
    if _FILES & set(alternatives):
        return [CompletionItem(incomplete, type="file")]
    words = [each for each in alternatives if each.islower() and len(alternatives) > 1]
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def _common(settings: dict[str, Any]) -> dict[str, Any]:
    return {"context_settings": {"max_content_width": _WIDTH}, **settings}


def _format_panels(command: click.Command, ctx: Context, formatter: click.HelpFormatter) -> None:
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        record = None if isinstance(parameter, click.Argument) else parameter.get_help_record(ctx)
        if record is not None:
            panels.setdefault(getattr(parameter, "panel", "Options"), []).append(record)
    for panel, records in panels.items():
        with formatter.section(panel):
            formatter.write_dl(records)


def _from_function(function: Callable[..., Any]) -> dict[str, Any]:
    """What click needs of a function to make a command."""
    parameters: list[click.Parameter] = []
    lists: dict[str, Any] = {}
    # A signature made by hand holds types, that of a function their text.
    hints = {} if hasattr(function, "__signature__") else typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, *marks = typing.get_args(hints.get(name, parameter.annotation))
        mark = next(each for each in marks if isinstance(each, Option | Argument))
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            kind = next(each for each in typing.get_args(kind) if each is not type(None))
        if kind == list[str]:
            lists[name] = parameter.default
        parameters.append(mark.made(name, dict(_KINDS[kind]), parameter.default))

    def call(**given: Any) -> Any:
        for name, default in lists.items():
            # What nobody gave is an empty tuple for click.
            given[name] = list(given[name] or ()) or default
        return function(**given)

    return {"params": parameters, "callback": call, "help": inspect.getdoc(function) or ""}


_KINDS: dict[Any, dict[str, Any]] = {
    str: {"type": str},
    int: {"type": int},
    bool: {"is_flag": True},
    Path: {"type": click.Path(path_type=Path)},
    list[str]: {"type": str, "multiple": True},
}
