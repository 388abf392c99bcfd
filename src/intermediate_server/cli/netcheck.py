"""``netcheck`` measures the way to a relay; ``address`` prints the addresses of a service inside the tunnel."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from intermediate_server import cli, loop
from intermediate_server.cli import commands
from intermediate_server.cli.flags import model_flags, with_parameters
from intermediate_server.config import resolve_client
from intermediate_server.config.clients import NetcheckSettings

HANDSHAKE_TIMEOUT = 5.0
"""Seconds for a handshake, since a person waits for the answer."""
_Json = Annotated[bool, commands.Option("--json", help="Print everything as JSON.")]


def register(app: commands.Group) -> None:
    """Add the commands of this module."""
    json_flag = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Json)
    app.command("netcheck")(with_parameters(netcheck, [*model_flags(NetcheckSettings), json_flag]))
    app.command("address")(address)


def address(
    service: Annotated[
        str, commands.Argument(metavar="SERVICE", help="Its name, as the relay's certificates have it.")
    ],
) -> None:
    """Print the IPv4 and the IPv6 address of a service inside the tunnel: where programs find it with agent --tun.

    They are derived from the name alone, so nothing is asked; --map of an agent puts another address in their place.
    """
    from intermediate_server.client.service_address import service_addresses  # noqa: PLC0415
    from intermediate_server.client.specs import check_service  # noqa: PLC0415

    for each in service_addresses(check_service(service)):
        commands.echo(each)


def netcheck(*, as_json: bool, **flags: Any) -> None:
    """Find out whether a relay can be reached, how it sees us, and why it refuses a registration.

    The last line is the verdict. The exit status is 0 when all is well, 1 when not.
    """
    settings = resolve_client(NetcheckSettings, "netcheck", flags, env={}).settings
    from intermediate_server.client import netcheck as checks  # noqa: PLC0415  see cli/__init__.py
    from intermediate_server.client.relay import Relay  # noqa: PLC0415
    from intermediate_server.client.specs import check_service  # noqa: PLC0415
    from intermediate_server.types import Role  # noqa: PLC0415

    relay = replace(Relay.of(settings, default=_usual_profile(settings)), handshake_timeout=HANDSHAKE_TIMEOUT)
    relay.check()
    wanted = None
    if settings.agent is not None:
        wanted = checks.Wanted(Role.AGENT, check_service(settings.agent))
    elif settings.connector is not None:
        wanted = checks.Wanted(Role.CONNECTOR, check_service(settings.connector))
    report = loop.run(checks.check(relay, wanted))
    if as_json:
        commands.echo(json.dumps(report.plain(), indent=2))
    else:
        for line in _lines(report.plain()):
            commands.echo(line)
    raise commands.Exit(cli.OK if report.ok else cli.FAILED)


def _usual_profile(settings: NetcheckSettings) -> Path | None:
    """The profile of the role that is asked for, else of whichever this host has; None where the settings name one."""
    if settings.profile is not None or settings.server is not None:
        return None
    from intermediate_server.client.profile import default_profile  # noqa: PLC0415  see cli/__init__.py
    from intermediate_server.types import Role  # noqa: PLC0415

    agent, connector = (default_profile(role) for role in (Role.AGENT, Role.CONNECTOR))
    if settings.agent is None and (settings.connector is not None or (connector.exists() and not agent.exists())):
        return connector
    return agent


def _lines(report: dict[str, Any]) -> list[str]:
    lines = []
    for name in ("ipv4", "ipv6"):
        family = report[name]
        if family is None:
            lines.append(f"{name}: the relay has no such address")
        elif family["error"] is not None:
            silent = family["cause"] in ("silent", "port_closed", "other")
            lines.append(f"{name}: {family['address']} {'not reachable' if silent else 'answers'}: {family['error']}")
        else:
            lines.append(
                f"{name}: {family['address']} reachable, handshake {family['handshake_ms']} ms,"
                f" round trip {family['rtt_ms']} ms (varies by {family['jitter_ms']} ms), MTU {family['mtu']}"
            )
            lines.append(f"{name}: {family['nat'] or 'the relay reported no address'}")
            if family["observed_frame"]:
                lines.append(f"{name}: standard OBSERVED_ADDRESS frame says {family['observed_frame']}")
        for address, why in family["unreachable"].items() if family else ():
            lines.append(f"{name}: {address} not reachable: {why}")
    lines.append(f"clock: {report['clock']}")
    if report["registration"]:
        lines.append(f"registration: {report['registration']}")
    if report["service"]:
        lines.append(f"service: {report['service']}")
    lines.append(report["verdict"])
    return lines
