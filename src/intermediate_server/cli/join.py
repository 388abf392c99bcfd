"""``join`` and ``leave``: from a token to a profile, and its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from intermediate_server import loop
from intermediate_server.cli import commands
from intermediate_server.cli.passphrase import read_passphrase
from intermediate_server.client import join as joining
from intermediate_server.client import profile as profiles
from intermediate_server.client.engine import ClientEngine
from intermediate_server.client.profile import Draft, NoProfile, Profile
from intermediate_server.client.profile_text import ProfileError
from intermediate_server.config.values import read_choice, read_path
from intermediate_server.errors import ConfigError, ConnectError
from intermediate_server.join.messages import MAX_BYTES, Issued
from intermediate_server.join.tokens import Token
from intermediate_server.types import Role

VARIABLE = "ZTNA_JOIN_TOKEN"
CREDENTIAL = "join-token"
"""The name of a token among the credentials of systemd."""
OFFLINE = "offline.ztna"
"""The usual file of a join without a network between, whose role is not known yet."""
_WAYS = f"as the argument, - for standard input, --token-file, {VARIABLE}, or the systemd credential {CREDENTIAL}"

ProfilePath = Annotated[
    str | None, commands.Option("--profile", metavar="PATH", help="The profile, if not the usual one of the role.")
]


def register(app: commands.Group) -> None:
    """Add the commands of this module."""
    app.command("join")(join)
    app.command("leave")(leave)


def join(
    token: Annotated[
        str | None,
        commands.Argument(
            metavar="[TOKEN]",
            help=f"What token create has printed, or - for standard input; else {VARIABLE}, else the systemd credential"
            f" {CREDENTIAL}.",
        ),
    ] = None,
    token_file: Annotated[
        str | None, commands.Option("--token-file", metavar="PATH", help="A file that holds the token.")
    ] = None,
    profile: ProfilePath = None,
    offline: Annotated[
        bool, commands.Option("--offline", help="Make a key, and print the signing request for pki sign on the relay.")
    ] = False,
    bundle: Annotated[
        str | None,
        commands.Option(
            "--complete", metavar="FILE|-", help="What pki sign has printed, or pki issue --profile has written."
        ),
    ] = None,
) -> None:
    """Join a relay: make a key here, have it certified by a token, and keep both in a profile.

    It may be repeated: the same token on the same host gives the same certificate. The exit status is 0 when this host
    has joined, 1 when the relay refuses or cannot be reached, 2 when the token or the profile cannot be used.
    """
    path = _path(profile, "--profile")
    if sum((offline, bundle is not None, token is not None or token_file is not None)) > 1:
        raise ConfigError("TOKEN, --offline, --complete: give one")
    if offline:
        request = joining.begin_offline(path or profiles.default_directory(os.environ) / OFFLINE)
        print(request.decode(), end="")
        return
    if bundle is not None:
        data = _read(bundle, "--complete", limit=profiles.MAX_BYTES).encode()

        def place(issued: Issued | Profile) -> Path:
            return path or profiles.default_profile(issued.role, os.environ)

        if data.lstrip().startswith(b"{"):
            draft = path or profiles.default_directory(os.environ) / OFFLINE
            made, target = joining.complete(draft, data, place)
        else:
            made, target = joining.unpack(data, read_passphrase, place)
    else:
        read = read_token(token, _path(token_file, "--token-file"), os.environ)
        target = path or profiles.default_profile(read.role, os.environ)
        made = _join(read, target)
    print(joined(made, target))


def leave(
    role: Annotated[
        str | None, commands.Argument(metavar="[agent|connector]", help="Which one, where this host is both.")
    ] = None,
    profile: ProfilePath = None,
    force: Annotated[
        bool, commands.Option("--force", help="Delete the profile also when the relay does not revoke its certificate.")
    ] = False,
) -> None:
    """Leave the relay: have it revoke this host's certificate, and delete the profile.

    The exit status is 1 when the relay cannot be reached; the profile stays then, unless --force is given.
    """
    path = _left_profile(role, _path(profile, "--profile"))
    try:
        found = profiles.read(path)
    except ProfileError:
        if not force:
            raise
        found = Draft(b"")
    if found is None:
        raise NoProfile(f"there is no profile at {path}: this host has not joined, or has left already")
    if isinstance(found, Draft):
        profiles.delete(path)
        print(f"no certificate was in {path}; deleted")
        return
    who = f'{found.role.value} "{found.name}"'
    try:
        loop.run(_leave(path))
    except (ConnectError, joining.JoinRefused) as error:
        if not force:
            raise ConnectError(
                f"{error}; {who} has not left: try again, or delete the profile alone with leave --force and revoke it "
                f"on the relay: intermediate-server revoke {found.name}"
            ) from error
        profiles.delete(path)
        print(f"warning: {error}; revoke it on the relay: intermediate-server revoke {found.name}", file=sys.stderr)
        print(f"{who} is not revoked; profile {path} deleted")
        return
    print(f"{who} has left: its certificate is revoked, profile {path} deleted")


def join_unless_joined(role: Role, path: Path | None, source: str) -> None:
    """Join by what ``--join`` names, unless there is a profile."""
    path = path or profiles.default_profile(role, os.environ)
    if isinstance(profiles.read(path), Profile):
        return
    match source:
        case "auto":
            token = read_token(None, None, os.environ)
        case _ if "/" in source:
            token = read_token(None, _path(source, "--join"), os.environ)
        case _:
            token = read_token(source, None, os.environ)
    if token.role is not role:
        raise ConfigError(
            f"this join token makes {_a(token.role)}, not {_a(role)}: use the other one that token create has printed"
        )
    print(joined(_join(token, path), path), file=sys.stderr)


def read_token(argument: str | None, file: Path | None, env: Mapping[str, str]) -> Token:
    """The token from where it was given; the environment is asked last. Raises ``ConfigError``."""
    if argument is not None and file is not None:
        raise ConfigError("TOKEN, --token-file: give one")
    if argument is not None:
        return Token.parse(_read("-", "TOKEN") if argument == "-" else argument)
    if file is not None:
        return Token.parse(_read(str(file), "--token-file"))
    if text := env.get(VARIABLE, "").strip():
        return Token.parse(text)
    credential = Path(env.get("CREDENTIALS_DIRECTORY", "")) / CREDENTIAL
    # Units have an empty one by default.
    if credential.is_absolute() and credential.exists() and (text := _read(str(credential), "credential").strip()):
        return Token.parse(text)
    raise ConfigError(
        f"no join token is given: give it {_WAYS}; one is made on the relay with: intermediate-server token create"
    )


def joined(profile: Profile, path: Path) -> str:
    """The line that tells of a join."""
    services = "every service" if "*" in profile.services else ", ".join(profile.services)
    until = f"{profile.leaf.not_valid_after_utc:%Y-%m-%d}"
    return (
        f'joined as {profile.role.value} "{profile.name}"{f" for {services}" if services else ""};'
        f" certificate until {until}, renewed by itself; profile {path}"
    )


def _join(token: Token, path: Path) -> Profile:
    async def main() -> Profile:
        async with ClientEngine() as engine:
            return await joining.join(engine, token, path, tell=lambda text: print(text, file=sys.stderr, flush=True))

    try:
        return loop.run(main())
    except ConnectError as error:
        if error.answered:
            raise
        raise ConnectError(
            f"{error}; see that the relay runs and that UDP reaches it, then repeat this command", cause=error.cause
        ) from error


async def _leave(path: Path) -> None:
    async with ClientEngine() as engine:
        await joining.leave(engine, path)


def _left_profile(role: str | None, path: Path | None) -> Path:
    if role is not None and path is not None:
        raise ConfigError("agent, connector, --profile: give one")
    if path is not None:
        return path
    if role is not None:
        try:
            word = read_choice("agent", "connector")(role)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return profiles.default_profile(Role(word), os.environ)
    usual = [profiles.default_profile(role, os.environ) for role in Role]
    there = [path for path in usual if path.exists()]
    if len(there) > 1:
        raise ConfigError("this host is agent and connector: say which one leaves: leave agent, or leave connector")
    return there[0] if there else usual[0]


def _read(source: str, where: str, *, limit: int = MAX_BYTES) -> str:
    """Text from standard input or a file. Raises ``ConfigError``, which quotes nothing of it."""
    try:
        if source == "-":
            data = sys.stdin.buffer.readline(limit + 1) if sys.stdin.isatty() else sys.stdin.buffer.read(limit + 1)
        else:
            with Path(source).expanduser().open("rb") as file:
                data = file.read(limit + 1)
        if len(data) > limit:
            raise ConfigError(f"{where}: more than {limit} bytes; give the right file")
        return data.decode()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"{where}: {source} cannot be read: {reason}") from None
    except ValueError:
        raise ConfigError(f"{where}: {source} is not text; give the right file") from None


def _path(text: str | None, where: str) -> Path | None:
    try:
        return None if text is None else read_path(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _a(role: Role) -> str:
    return f"{'an' if role is Role.AGENT else 'a'} {role.value}"
