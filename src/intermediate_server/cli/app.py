"""The program: its commands with their modules, and the options in front of all."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
import typer.main

from intermediate_server import cli
from intermediate_server.errors import ConfigError

COMMANDS = {
    "serve": "serve",
    "check-config": "serve",
    "pki": "pki",
    "policy": "policy",
    "agent": "clients",
    "connector": "clients",
    "netcheck": "netcheck",
    "address": "netcheck",
    "lab": "lab",
}
"""Module of each command. A module has ``register(app)``, which adds all of its commands."""


def run(arguments: Sequence[str]) -> None:
    """Run the command of the arguments; ends with ``SystemExit``."""
    command = typer.main.get_command(build(arguments))
    _refuse_repeats(command)
    command(args=list(arguments), prog_name="intermediate-server")


def _refuse_repeats(command: Any) -> None:
    """Make an option with one value refuse a second one, which would win in silence."""
    for option in command.params:
        if option.param_type_name == "option" and not (option.multiple or option.is_flag or option.count):
            _take_once(option)
    for other in getattr(command, "commands", {}).values():
        _refuse_repeats(other)


def _take_once(option: Any) -> None:
    add_to_parser, consume_value = option.add_to_parser, option.consume_value

    def add(parser: Any, context: Any) -> None:
        option.multiple = True
        try:
            add_to_parser(parser, context)
        finally:
            option.multiple = False

    def consume(context: Any, given: Mapping[str, Any]) -> Any:
        values = given.get(option.name)
        if isinstance(values, list):
            if len(values) > 1:
                flag = max(option.opts, key=len)
                raise ConfigError(
                    f"{flag} is given {len(values)} times, with {' and '.join(map(str, values))}: give one"
                )
            given = {**given, option.name: values[0]}
        return consume_value(context, given)

    option.add_to_parser, option.consume_value = add, consume


def build(arguments: Sequence[str]) -> typer.Typer:
    """The program with the module of the command in ``arguments``, or with all of them when it names none."""
    # Tracebacks with local variables would print keys; unexpected errors get Python's plain one.
    app = typer.Typer(
        name="intermediate-server",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_options)
    module = COMMANDS.get(arguments[0]) if arguments else None
    for name in [module] if module else dict.fromkeys(COMMANDS.values()):
        importlib.import_module(f"intermediate_server.cli.{name}").register(app)
    return app


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"intermediate-server {cli.version()}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """A zero-trust QUIC relay: it proves who each peer is, tells it its public address and relays its packets."""
