"""Putting the commands together: which module has which, and the options in front of all."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Annotated

import typer

from intermediate_server import cli

COMMANDS = {
    "serve": "serve",
    "check-config": "serve",
    "pki": "pki",
    "policy": "policy",
    "agent": "ends",
    "connector": "ends",
    "netcheck": "netcheck",
    "lab": "lab",
}
"""Module of each command. A module has ``register(app)``, which adds all of its commands."""


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
