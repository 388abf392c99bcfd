"""``pki``: the development CA, and certificates for agents and connectors from it."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from typing import Annotated, Any

from intermediate_server.cli import commands
from intermediate_server.cli.passphrase import read_passphrase
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
    to_path,
)
from intermediate_server.config.values import read_choice
from intermediate_server.errors import ConfigError
from intermediate_server.join import offline
from intermediate_server.join.messages import encode
from intermediate_server.join.relay import noted
from intermediate_server.pki import files, keys
from intermediate_server.pki.authority import DEFAULT_DAYS, Authority, Issued
from intermediate_server.pki.inspect import describe
from intermediate_server.pki.rollover import Rollover
from intermediate_server.pki.terms import terms
from intermediate_server.types import Role

Services = Annotated[
    list[str] | None,
    commands.Option("--service", "-s", metavar="NAME", help="Service it may use or serve, repeatable; * is all."),
]
KeyKind = Annotated[str, commands.Option("--key-type", metavar="p256|ed25519", help="Kind of the private key.")]
Days = Annotated[int, commands.Option("--days", help="Validity in days, 1 to 3650.")]
ProfileOut = Annotated[
    str | None,
    commands.Option(
        "--profile", metavar="FILE", help="Write all that the device needs into one file; the key then travels with it."
    ),
]
Passphrase = Annotated[
    bool, commands.Option("--passphrase", help="Ask for a passphrase, and encrypt the key of the profile with it.")
]
Name = Annotated[str, commands.Argument(metavar="NAME", help="Name of the holder: a device, a person, a machine.")]


def register(app: commands.Group) -> None:
    """Add the commands of this module."""
    group = commands.Group(help="Make, list and revoke certificates of the development CA.")
    issue = commands.Group(help="Issue a certificate and its private key.")
    group.command("init")(init)
    issue.command("agent")(issue_agent)
    issue.command("connector")(issue_connector)
    issue.command("server")(issue_server)
    group.add_group(issue, "issue")
    group.command("list")(list_issued)
    group.command("revoke")(revoke)
    group.command("renew")(renew)
    group.command("show")(show)
    group.command("sign")(sign)
    rollover = commands.Group(help="Let a new CA take over, and touch no device.")
    for step in (start, switch, finish):
        rollover.command(step.__name__)(step)
    group.add_group(rollover, "rollover")
    app.add_group(group, "pki")


def init(state_dir: StateDir = None) -> None:
    """Make the CA and an empty revocation list, if there are none."""
    authority = _authority(state_dir)
    created = authority.init()
    commands.echo(f"CA certificate   {authority.certificate_path}{'' if created else ' (already there)'}")
    commands.echo(f"revocation list  {authority.crl_path}")


def issue_agent(
    name: Name,
    service: Services = None,
    key_type: KeyKind = "p256",
    days: Days = DEFAULT_DAYS,
    profile: ProfileOut = None,
    passphrase: Passphrase = False,
    state_dir: StateDir = None,
) -> None:
    """Issue a certificate for an agent."""
    _issue(Role.AGENT, name, service, key_type, days=days, state_dir=state_dir, profile=profile, locked=passphrase)


def issue_connector(
    name: Name,
    service: Services = None,
    key_type: KeyKind = "p256",
    days: Days = DEFAULT_DAYS,
    profile: ProfileOut = None,
    passphrase: Passphrase = False,
    state_dir: StateDir = None,
) -> None:
    """Issue a certificate for a connector."""
    _issue(Role.CONNECTOR, name, service, key_type, days=days, state_dir=state_dir, profile=profile, locked=passphrase)


def issue_server(
    name: Annotated[str, commands.Argument(metavar="NAME", help="DNS name or address that clients dial.")],
    also: Annotated[
        list[str] | None, commands.Option("--also", metavar="NAME", help="A further one, repeatable.")
    ] = None,
    key_type: KeyKind = "p256",
    days: Days = DEFAULT_DAYS,
    state_dir: StateDir = None,
) -> None:
    """Issue a certificate for a relay, for its --cert and --key."""
    authority = _authority(state_dir)
    entry = authority.issue_server(name, names=also or [], key_type=_key_kind(key_type), days=days)
    _print_issued(authority, entry)


def list_issued(state_dir: StateDir = None) -> None:
    """List what was issued, oldest first."""
    now = keys.utc_now()
    rows = [
        (entry.name, entry.holder, ", ".join(entry.services), _day(entry.not_after), _state(entry, now), entry.serial)
        for entry in _authority(state_dir).entries()
    ]
    print_table(("name", "role", "services", "expires", "state", "serial"), rows)


def revoke(
    which: Annotated[str, commands.Argument(metavar="NAME|SERIAL|FINGERPRINT", help="Certificates to revoke.")],
    state_dir: StateDir = None,
) -> None:
    """Revoke certificates and write the revocation list."""
    authority = _authority(state_dir)
    for entry in authority.revoke(which):
        commands.echo(f"revoked {entry.name} (serial {entry.serial})")
    commands.echo(f"revocation list  {authority.crl_path}")


def renew(name: Name, service: Services = None, days: Days = DEFAULT_DAYS, state_dir: StateDir = None) -> None:
    """Issue a new certificate for the same key: the same services, or those that are named."""
    authority = _authority(state_dir)
    entry = authority.renew(name, services=service or [], days=days)
    commands.echo(f"certificate  {authority.certificate_file(name)} (until {_day(entry.not_after)})")


def show(file: Annotated[str, commands.Argument(metavar="FILE", help="A PEM file of certificates.")]) -> None:
    """Print what the certificates of a file say."""
    for number, item in enumerate(describe(files.read_file(to_path(file, "FILE"), "certificate file"))):
        if number:
            commands.echo()
        lines = {
            "subject": item.subject,
            "issuer": item.issuer,
            "serial": item.serial,
            "sha256": item.fingerprint,
            "key": item.key,
            "valid": f"{item.not_before.isoformat()} to {item.not_after.isoformat()}",
            "kind": "CA" if item.is_ca else ", ".join(item.usages) or "any use",
        }
        for label, text in lines.items():
            commands.echo(f"{label:<9}{printable(text)}")
        for name in item.names:
            commands.echo(f"{'name':<9}{printable(name)}")


def start(state_dir: StateDir = None) -> None:
    """Make the new CA: both are trusted from now on, and renewals hand out both."""
    made = Rollover(find_state_dir(state_dir)).start()
    commands.echo(f"new CA  {made.subject.rfc4514_string()}; it signs nothing yet")
    commands.echo("next, when every client has renewed once: intermediate-server pki rollover switch")


def switch(state_dir: StateDir = None) -> None:
    """Sign with the new CA; do this one life of certificates after start."""
    directory = find_state_dir(state_dir)
    settings = noted(directory)
    made = Rollover(directory).switch(None if settings is None else settings.ca_cert)
    commands.echo(f"signing CA  {made.subject.rfc4514_string()}")
    commands.echo("next, when every client has renewed once more: intermediate-server pki rollover finish")


def finish(state_dir: StateDir = None) -> None:
    """Drop the old CA. Refused while identities or tokens that may be used need it; it lists them."""
    made = Rollover(find_state_dir(state_dir)).finish()
    commands.echo(f"only CA  {made.subject.rfc4514_string()}")


def sign(
    file: Annotated[str, commands.Argument(metavar="FILE|-", help="What join --offline has printed on the device.")],
    role: Annotated[str, commands.Option("--role", metavar="agent|connector", help="What the device becomes.")],
    service: Services = None,
    name: HolderName = None,
    lifetime: Annotated[
        str | None,
        commands.Option("--lifetime", metavar="DURATION", help="Of the certificate; by default certificate-lifetime."),
    ] = None,
    dns: DnsNames = None,
    spiffe: SpiffeIds = None,
    state_dir: StateDir = None,
) -> None:
    """Sign the request of a device without a network to the relay, and print the bundle for join --complete."""
    settings = relay_settings(None, state_dir)
    wanted = terms(
        Role(read_value("--role", read_choice("agent", "connector"), role)),
        service or [],
        lifetime=read_time("--lifetime", lifetime) if lifetime else timedelta(seconds=settings.certificate_lifetime),
        dns=dns or [],
        uris=spiffe or [],
        name=name,
    )
    if file == "-":
        data = sys.stdin.buffer.read(offline.MAX_REQUEST + 1)[: offline.MAX_REQUEST]
    else:
        data = files.read_file(to_path(file, "FILE"), "signing request", limit=offline.MAX_REQUEST)
    relay = offline.relay_of(settings)
    row = offline.sign(Authority(settings.state_dir), settings, data, wanted)
    commands.echo(encode(offline.answer(relay, row)).decode())


def _issue(
    role: Role,
    name: str,
    services: list[str] | None,
    key_type: str,
    *,
    days: int,
    state_dir: str | None,
    profile: str | None,
    locked: bool,
) -> None:
    if locked and profile is None:
        raise ConfigError("--passphrase: it is for the key of a profile; give --profile FILE too")
    authority = _authority(state_dir)
    if profile is None:
        entry = authority.issue(role, name, services=services or [], key_type=_key_kind(key_type), days=days)
        _print_issued(authority, entry)
        return
    # Importing the clients loads the engine.
    from intermediate_server.client.profile import Draft, Profile  # noqa: PLC0415
    from intermediate_server.client.profile import locked as locked_profile  # noqa: PLC0415

    path = to_path(profile, "--profile")
    if path.exists():
        raise ConfigError(f"--profile: {path} exists; name a new file")
    relay = offline.relay_of(relay_settings(None, state_dir))
    word = read_passphrase(twice=True) if locked else None
    entry = authority.issue(role, name, services=services or [], key_type=_key_kind(key_type), days=days)
    key = authority.key_path(name)
    made = Profile.of(Draft(key.read_bytes()), offline.answer(relay, entry))
    if word is None:
        made.save(path)
    else:
        files.write_file(path, locked_profile(made, word), private=True)
    key.unlink()
    commands.echo(f"profile  {path} (until {_day(entry.not_after)}); its key is nowhere else")


def _key_kind(text: str) -> Any:
    try:
        return read_choice("p256", "ed25519")(text)
    except ValueError as error:
        raise ConfigError(f"--key-type: {error}") from None


def _print_issued(authority: Authority, entry: Issued) -> None:
    name = entry.name
    commands.echo(f"certificate  {authority.certificate_file(name)} (until {_day(entry.not_after)})")
    commands.echo(f"private key  {authority.key_path(name)}")
    commands.echo(f"CA           {authority.certificate_path}")


def _authority(state_dir: str | None) -> Authority:
    return Authority(find_state_dir(state_dir))


def _state(entry: Issued, now: datetime) -> str:
    if entry.revoked_at is not None:
        return f"revoked {_day(entry.revoked_at)}"
    return "good" if entry.is_live(now) else "expired"


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"
