"""The program: its commands with their modules, and the options in front of all."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import click

from intermediate_server import cli
from intermediate_server.cli import commands

COMMANDS = {
    "serve": "serve",
    "check-config": "serve",
    "token": "token",
    "pki": "pki",
    "revoke": "state",
    "backup": "state",
    "policy": "policy",
    "agent": "clients",
    "connector": "clients",
    "join": "join",
    "leave": "join",
    "netcheck": "netcheck",
    "address": "netcheck",
    "lab": "lab",
    "unit": "unit",
    "completion": "completion",
    "healthcheck": "healthcheck",
}
"""Module of each command. A module has ``register(app)``, which adds all of its commands."""


def run(arguments: Sequence[str]) -> None:
    """Run the command of the arguments; ends with ``SystemExit``."""
    build(arguments)(args=list(arguments), prog_name="intermediate-server")


def build(arguments: Sequence[str]) -> commands.Group:
    """The program with the module of the command in ``arguments``, or with all of them when it names none."""
    app = commands.Group(
        help="A zero-trust QUIC relay: it proves who each peer is, tells it its public address and relays its packets.",
        params=[
            click.Option(
                ["--version", "-V"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_print_version,
                help="Print the version and exit.",
            )
        ],
    )
    module = COMMANDS.get(arguments[0]) if arguments else None
    for name in [module] if module else dict.fromkeys(COMMANDS.values()):
        importlib.import_module(f"intermediate_server.cli.{name}").register(app)
    return app


def _print_version(context: commands.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        commands.echo(f"intermediate-server {cli.version()}")
        raise commands.Exit
