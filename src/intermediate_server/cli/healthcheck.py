"""``healthcheck``: whether what runs here is well, as containers ask."""

from __future__ import annotations

import http.client
import os
from pathlib import Path
from typing import Annotated

from intermediate_server import cli, loop
from intermediate_server.cli import commands
from intermediate_server.cli.connected import admin_connection
from intermediate_server.cli.state import StateDir
from intermediate_server.config import resolve
from intermediate_server.errors import ConfigError, ConnectError

CLIENTS = ("agent", "connector")
PROGRAMS = ("server", *CLIENTS)
MAX_BYTES = 1024
"""Of the answer of ``/livez``, which is a line."""


def register(app: commands.Group) -> None:
    """Add the commands of this module."""
    app.command("healthcheck")(healthcheck)


def healthcheck(
    program: Annotated[
        str | None,
        commands.Argument(metavar="[server|agent|connector]", help="Ask this one, and miss it if it is gone."),
    ] = None,
    config: Annotated[
        str | None, commands.Option("--config", metavar="PATH", help="Configuration file of the server.")
    ] = None,
    state_dir: StateDir = None,
    status_socket: Annotated[
        str | None,
        commands.Option(
            "--status-socket", metavar="PATH", help="Socket of the agent or connector, if not the usual one."
        ),
    ] = None,
) -> None:
    """Say whether the relay, the agent and the connector that run here are well: for the health check of a container.

    A relay is well while its engine turns (/livez), agent and connector are while they are connected. The exit status
    is 1 when one is not well, or nothing runs.
    """
    if program is not None and program not in PROGRAMS:
        raise ConfigError(f"{program!r} is none of {', '.join(PROGRAMS)}")
    if status_socket and program not in CLIENTS:
        raise ConfigError("--status-socket is for: healthcheck agent, and healthcheck connector")
    found = {}
    for each in PROGRAMS if program is None else (program,):
        needed = program is not None
        state = (
            _server(config, state_dir, needed=needed)
            if each == "server"
            else _client(each, status_socket, needed=needed)
        )
        if state is not None:
            found[each] = state
    for each, wrong in found.items():
        commands.echo(f"{each}: {wrong or 'ok'}")
    if not found:
        commands.echo("neither server, agent nor connector runs here")
    raise commands.Exit(cli.OK if found and not any(found.values()) else cli.FAILED)


def _server(config: str | None, state_dir: str | None, *, needed: bool) -> str | None:
    """What is wrong with the server, empty when nothing is; None where none has run."""
    from intermediate_server.join.relay import noted  # noqa: PLC0415  see cli/__init__.py

    settings = resolve({"config": config, "state_dir": state_dir}, env=os.environ).settings
    in_force = noted(settings.state_dir)
    needed, settings = needed or in_force is not None, in_force or settings
    if settings.metrics_port == 0:
        return "metrics-port = 0 turns its health off" if needed else None
    connection = admin_connection(settings)
    where = f"http://{connection.host}:{connection.port}/livez"
    try:
        connection.request("GET", "/livez")
        answer = connection.getresponse()
        text = answer.read(MAX_BYTES).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"no answer at {where}: {error}" if needed else None
    finally:
        connection.close()
    if (answer.status, text) == (http.client.OK, "ok"):
        return ""
    # Others like port 9090 too.
    return f"{where} answers {answer.status} {text[:100]!a}" if needed else None


def _client(role: str, named: str | None, *, needed: bool) -> str | None:
    """As ``_server``, for an agent or a connector."""
    from intermediate_server.client import status  # noqa: PLC0415  see cli/__init__.py

    path = Path(named).expanduser() if named else status.socket_to_ask(role)
    if not needed and not path.exists():
        return None
    try:
        answer = loop.run(status.ask(path))
    except ConnectError as error:
        return str(error)
    if answer.get("silent"):
        return "its relay is silent"
    return "" if answer.get("connected") else f"not connected: {answer.get('last_error') or 'not yet'}"
