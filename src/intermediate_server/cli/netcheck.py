"""``netcheck`` measures the way to a relay; ``address`` prints the addresses of a service inside the tunnel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from intermediate_server import cli, loop
from intermediate_server.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("netcheck")(netcheck)
    app.command("address")(address)


def address(
    service: Annotated[str, typer.Argument(metavar="SERVICE", help="Its name, as the relay's certificates have it.")],
) -> None:
    """Print the IPv4 and the IPv6 address of a service inside the tunnel: where programs find it with agent --tun.

    They are derived from the name alone, so nothing is asked; --map of an agent puts another address in their place.
    """
    from intermediate_server.client.service_address import service_addresses  # noqa: PLC0415
    from intermediate_server.client.specs import check_service  # noqa: PLC0415

    for each in service_addresses(check_service(service)):
        typer.echo(each)


def netcheck(
    server: Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="The relay; without a port it is 4433.")],
    ca_cert: Annotated[Path | None, typer.Option("--ca-cert", metavar="PATH", help="CA of the relay, PEM.")] = None,
    cert: Annotated[Path | None, typer.Option("--cert", metavar="PATH", help="Our certificate, PEM.")] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="PATH", help="Its private key, PEM.")] = None,
    readable_keys: Annotated[
        bool, typer.Option("--readable-keys", help="Take a private key that everyone may read.")
    ] = False,
    server_name: Annotated[str | None, typer.Option("--server-name", metavar="NAME")] = None,
    no_verify_peer: Annotated[bool, typer.Option("--no-verify-peer", help="Accept any relay: for tests only.")] = False,
    agent: Annotated[
        str | None,
        typer.Option("--agent", metavar="SERVICE", help="Try to register for it, and send a packet through."),
    ] = None,
    connector: Annotated[
        str | None,
        typer.Option(
            "--connector",
            metavar="SERVICE",
            help="Try to register as its connector. With the certificate of one that runs, this takes its traffic"
            " until it registers again.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Find out whether a relay can be reached, how it sees us, and why it refuses a registration.

    The last line is the verdict. The exit status is 0 when all is well, 1 when not.
    """
    if agent is not None and connector is not None:
        raise ConfigError("--agent, --connector: name one")
    if ca_cert is None and not no_verify_peer:
        raise ConfigError("--ca-cert is missing: name the CA of the relay's certificate")
    from intermediate_server.client import netcheck as checks  # noqa: PLC0415  see cli/__init__.py
    from intermediate_server.client.relay import Relay  # noqa: PLC0415
    from intermediate_server.client.specs import check_service  # noqa: PLC0415
    from intermediate_server.types import Role  # noqa: PLC0415

    for name, path in (("--ca-cert", ca_cert), ("--cert", cert), ("--key", key)):
        if path == Path():
            raise ConfigError(f"{name}: an empty path")
    relay = Relay(
        server=server,
        ca_file=ca_cert,
        cert_file=cert,
        key_file=key,
        readable_keys=readable_keys,
        server_name=server_name,
        verify=not no_verify_peer,
        handshake_timeout=5.0,
    )
    relay.check()
    wanted = None
    if agent is not None:
        wanted = checks.Wanted(Role.AGENT, check_service(agent))
    elif connector is not None:
        wanted = checks.Wanted(Role.CONNECTOR, check_service(connector))
    report = loop.run(checks.check(relay, wanted))
    if as_json:
        typer.echo(json.dumps(report.plain(), indent=2))
    else:
        for line in _lines(report.plain()):
            typer.echo(line)
    raise typer.Exit(cli.OK if report.ok else cli.FAILED)


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
