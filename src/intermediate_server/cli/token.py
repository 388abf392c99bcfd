"""``token``: join tokens, and the joins that wait for an operator."""

from __future__ import annotations

import re
import sys
from datetime import datetime, timedelta
from typing import Annotated

from intermediate_server.cli import commands
from intermediate_server.cli.state import (
    DnsNames,
    HolderName,
    SpiffeIds,
    StateDir,
    find_state_dir,
    print_table,
    printable,
    read_time,
    read_value,
    relay_settings,
)
from intermediate_server.config.values import read_choice, read_integer, read_server
from intermediate_server.errors import CertificateError
from intermediate_server.join import relay
from intermediate_server.join.chain import chain_of
from intermediate_server.join.tokens import Token, secret_hash
from intermediate_server.pki import keys
from intermediate_server.pki.authority import Authority
from intermediate_server.pki.joins import Joins
from intermediate_server.pki.terms import Terms, TokenRow, terms
from intermediate_server.types import Role

ConfigFile = Annotated[
    str | None, commands.Option("--config", metavar="PATH", help="Configuration file of the server.")
]
Which = Annotated[str, commands.Argument(metavar="ID|TOKEN", help="Id of a token, the token itself, or - to read it.")]
JoinId = Annotated[str, commands.Argument(metavar="ID", help="Number of the join, as token pending lists it.")]


def register(app: commands.Group) -> None:
    """Add the commands of this module."""
    group = commands.Group(help="Make and revoke join tokens, and decide about joins that wait.")
    for command in (create, inspect, revoke, pending, approve, deny):
        group.command(command.__name__)(command)
    group.command("list")(list_tokens)
    app.add_group(group, "token")


def create(
    service: Annotated[
        list[str] | None, commands.Argument(metavar="[SERVICE]...", help="Services that it may use or serve; * is all.")
    ] = None,
    role: Annotated[
        str | None,
        commands.Option("--role", metavar="agent|connector", help="What the holder becomes; a token for each."),
    ] = None,
    expires: Annotated[str, commands.Option("--expires", metavar="DURATION", help="1m to 30d.")] = "1h",
    uses: Annotated[
        str, commands.Option("--uses", metavar="COUNT", help="Devices that may join by it, 1 to 1000.")
    ] = "1",
    source: Annotated[
        list[str] | None,
        commands.Option("--from", metavar="NETWORK", help="Network from where it may be used, repeatable."),
    ] = None,
    lifetime: Annotated[
        str | None,
        commands.Option("--lifetime", metavar="DURATION", help="Of each certificate; by default certificate-lifetime."),
    ] = None,
    ephemeral: Annotated[
        str | None,
        commands.Option(
            "--ephemeral", metavar="DURATION", help="Revoke the identity when it was not connected for so long."
        ),
    ] = None,
    hold: Annotated[bool, commands.Option("--approve", help="Hold each join until token approve.")] = False,
    name: HolderName = None,
    prefix: Annotated[
        str, commands.Option("--name-prefix", metavar="TEXT", help="In front of the name of the host.")
    ] = "",
    replace: Annotated[
        bool, commands.Option("--replace", help="Take over a taken name: the identity that has it is revoked.")
    ] = False,
    dns: DnsNames = None,
    spiffe: SpiffeIds = None,
    address: Annotated[
        list[str] | None,
        commands.Option(
            "--address", metavar="HOST[:PORT]", help="Where the relay is reached, repeatable; for public-address."
        ),
    ] = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
) -> None:
    """Make a join token for each role: what a device becomes that runs intermediate-server join TOKEN.

    The token is shown once; the server keeps a hash of it.
    """
    settings = relay_settings(config, state_dir)
    roles = (
        [Role(read_value("--role", read_choice("agent", "connector"), role))] if role else [Role.CONNECTOR, Role.AGENT]
    )
    wanted = [
        terms(
            each,
            service or [],
            lifetime=read_time("--lifetime", lifetime)
            if lifetime
            else timedelta(seconds=settings.certificate_lifetime),
            dns=dns or [],
            uris=spiffe or [],
            name=name,
            prefix=prefix,
            replaces=replace,
            networks=source or [],
            uses=read_value("--uses", read_integer, uses),
            approve=hold,
            ephemeral=read_time("--ephemeral", ephemeral) if ephemeral else None,
        )
        for each in roles
    ]
    chain = chain_of(settings)
    servers = tuple(read_value("--address", read_server, each) for each in address or []) or relay.servers_of(settings)
    if relay.is_local(servers):
        commands.echo(
            f"warning: {', '.join(servers)} is reached from this host only; set public-address, or give --address",
            err=True,
        )
    joins = Joins(Authority(settings.state_dir))
    lines = []
    for each in wanted:
        token = Token.new(each.role, pin=chain.pin, servers=servers, server_name=chain.server_name)
        row = joins.create(
            token.id, secret_hash(token.secret), each, pin=chain.pin, expires=read_time("--expires", expires)
        )
        lines.append((_label(row), f"intermediate-server join {token}   then: {_then(each)}"))
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        commands.echo(f"{label:<{width}}  {text}")


def list_tokens(state_dir: StateDir = None) -> None:
    """List the tokens that are kept, oldest first."""
    now = keys.utc_now()
    rows = []
    for row in _joins(state_dir).tokens():
        each = row.terms
        uses = f"{row.used}/{each.uses}"
        limits = ", ".join(str(network) for network in each.networks) or "anywhere"
        rows.append(
            (
                row.id.hex(),
                each.role.value,
                ", ".join(each.services),
                _name(each),
                uses,
                limits,
                _until(row),
                row.state(now),
            )
        )
    print_table(("id", "role", "services", "name", "used", "from", "until", "state"), rows)


def inspect(which: Which, state_dir: StateDir = None) -> None:
    """Print what a token says, but for its secret; on the relay also how it stands there."""
    token = _parse(which)
    token_id = None if token is None else token.id
    lines: list[tuple[str, str]] = []
    if token is not None:
        lines += [
            ("id", token.id.hex()),
            ("role", token.role.value),
            ("servers", ", ".join(token.servers)),
            ("name", token.server_name),
            ("pin", token.pin.hex()),
        ]
    row = _known(token_id, which, state_dir)
    if row is not None:
        each = row.terms
        lines += [] if token is not None else [("id", row.id.hex()), ("role", each.role.value), ("pin", row.pin.hex())]
        lines += [
            ("services", ", ".join(each.services)),
            ("names", ", ".join((*each.dns, *each.uris)) or "none"),
            ("holder", _name(each)),
            ("from", ", ".join(map(str, each.networks)) or "anywhere"),
            ("used", f"{row.used} of {each.uses}"),
            ("until", _until(row)),
            ("state", row.state(keys.utc_now())),
        ]
    for label, text in lines:
        commands.echo(f"{label:<9}{text}")


def revoke(which: Which, state_dir: StateDir = None) -> None:
    """Revoke a token; whoever has joined by it stays."""
    token = _parse(which)
    joins = _joins(state_dir)
    row = joins.revoke_token(token.id if token is not None else _find(joins, which).id)
    commands.echo(f"revoked token {row.id.hex()}, used {row.used} of {row.terms.uses} times")


def pending(state_dir: StateDir = None) -> None:
    """List the joins that wait for an operator, oldest first."""
    print_table(
        ("id", "token", "role", "services", "name", "host", "from", "asked"),
        [
            (
                str(item.join),
                item.token.hex(),
                item.role.value,
                ", ".join(item.services),
                item.name,
                printable(item.host),
                item.source,
                f"{item.asked_at.astimezone():%Y-%m-%d %H:%M}",
            )
            for item in _joins(state_dir).pending()
        ],
    )


def approve(join: JoinId, state_dir: StateDir = None) -> None:
    """Let a join go on; its client asks again within 10 s."""
    item = _joins(state_dir).approve(read_value("ID", read_integer, join))
    commands.echo(f"approved {item.name} as {item.role.value}, asked from {item.source}")


def deny(join: JoinId, state_dir: StateDir = None) -> None:
    """Refuse a join; the token may be used by another device."""
    item = _joins(state_dir).deny(read_value("ID", read_integer, join))
    commands.echo(f"denied {item.name}, asked from {item.source}")


def _joins(state_dir: str | None) -> Joins:
    return Joins(Authority(find_state_dir(state_dir)))


def _parse(which: str) -> Token | None:
    """The token that is given or comes on standard input; None for an id."""
    text = sys.stdin.read(8193) if which == "-" else which
    if which != "-" and re.fullmatch(r"[0-9A-Fa-f]{4,12}", which):
        return None
    return Token.parse(text)


def _known(token_id: bytes | None, which: str, state_dir: str | None) -> TokenRow | None:
    """How a token stands on this host; None where it has no relay, which a token alone needs not."""
    joins = _joins(state_dir)
    if token_id is None:
        return _find(joins, which)
    try:
        return joins.token(token_id)
    except CertificateError:
        return None


def _find(joins: Joins, which: str) -> TokenRow:
    found = [row for row in joins.tokens() if row.id.hex().startswith(which.lower())]
    if len(found) != 1:
        what = "no token begins" if not found else f"{len(found)} tokens begin"
        raise CertificateError(f"{what} with {which}; run: intermediate-server token list")
    return found[0]


def _label(row: TokenRow) -> str:
    uses = "used once" if row.terms.uses == 1 else f"used up to {row.terms.uses} times"
    return f"{row.terms.role.value}, {uses}, until {_until(row)}:"


def _until(row: TokenRow) -> str:
    end = row.expires_at.astimezone()
    return f"{end:%H:%M}" if end.date() == datetime.now().astimezone().date() else f"{end:%Y-%m-%d %H:%M}"


def _name(each: Terms) -> str:
    return each.name or f"{each.prefix}HOST"


def _then(each: Terms) -> str:
    """The command that follows a join."""
    services = [service for service in each.services if service != "*"] or ["NAME"]
    if each.role is Role.CONNECTOR:
        wanted = [f"--service {name}=tcp://127.0.0.1:{8080 + number}" for number, name in enumerate(services)]
    else:
        first = 8080 + len(services)
        wanted = [f"--forward tcp:127.0.0.1:{first + number}={name}" for number, name in enumerate(services)]
    return f"intermediate-server {each.role.value} {' '.join(wanted)}"
