"""The state directory of a server, as the commands beside it find it; and ``revoke`` and ``backup``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from intermediate_server.cli import commands
from intermediate_server.cli.connected import connected
from intermediate_server.config import Settings, resolve
from intermediate_server.config.host import default_state_dir
from intermediate_server.config.values import read_duration, read_path
from intermediate_server.errors import ConfigError

StateDir = Annotated[
    str | None, commands.Option("--state-dir", metavar="PATH", help="State directory of the server; as for serve.")
]

HolderName = Annotated[
    str | None, commands.Option("--name", metavar="NAME", help="Name of the holder; by default that of its host.")
]
DnsNames = Annotated[
    list[str] | None,
    commands.Option("--dns", metavar="NAME", help="Further DNS name in the certificate, for rules, repeatable."),
]
SpiffeIds = Annotated[
    list[str] | None,
    commands.Option("--spiffe", metavar="ID", help="SPIFFE id in the certificate, for rules, repeatable."),
]


def register(app: commands.Group) -> None:
    """Add the commands of this module."""
    app.command("revoke")(revoke)
    app.command("backup")(backup)


def revoke(
    which: Annotated[
        str, commands.Argument(metavar="NAME|SERIAL|FINGERPRINT|FILE", help="An identity, or its certificate.")
    ],
    state_dir: StateDir = None,
) -> None:
    """End an identity: its connections within a second, its certificates, and its renewal.

    One that was issued elsewhere is named by the SHA-256 fingerprint or the file of its certificate, or by its common
    name while it is connected.
    """
    from intermediate_server.pki import denied  # noqa: PLC0415  see cli/__init__.py
    from intermediate_server.pki.authority import Authority, NotIssued  # noqa: PLC0415
    from intermediate_server.pki.database import StoreError  # noqa: PLC0415
    from intermediate_server.pki.names import fingerprint_of  # noqa: PLC0415

    directory = find_state_dir(state_dir)
    authority = Authority(directory)

    def end(name: str) -> None:
        for entry in authority.revoke(name, whole=True):
            commands.echo(f"revoked {entry.name} (serial {entry.serial})")

    try:
        try:
            end(which)
        except NotIssued:
            which = _certificate_of(which) or connected(directory, which) or which
            end(which)
    except NotIssued:
        commands.echo(f"denied {denied.deny(directory, which)}, which was not issued here")
    except StoreError as error:
        if fingerprint_of(which) is None:
            raise
        # The deny list needs no index: whoever is lost must be kept out even so.
        commands.echo(f"denied {denied.deny(directory, which)}; its renewal is not ended: {error}", err=True)
        raise commands.Exit(1) from None


def _certificate_of(which: str) -> str | None:
    """The fingerprint of the first certificate of a file; None where there is no file. Raises ``CertificateError``."""
    from intermediate_server.pki.keys import SHA256, load_certificates  # noqa: PLC0415

    path = to_path(which, "FILE")
    return load_certificates(path)[0].fingerprint(SHA256).hex() if path.is_file() else None


def backup(
    file: Annotated[str, commands.Argument(metavar="FILE", help="The archive to write; it must not exist.")],
    state_dir: StateDir = None,
) -> None:
    """Write CA, keys, index and lists of the state directory into one archive, as they are at one moment.

    Keep it as you keep ca.key. docs/backup.md says how to restore it.
    """
    from intermediate_server.pki.backup import write_backup  # noqa: PLC0415

    directory, path = find_state_dir(state_dir), to_path(file, "FILE")
    names = write_backup(directory, path)
    commands.echo(f"{path}: {len(names)} files of {directory}; it holds private keys")


def find_state_dir(given: str | None) -> Path:
    """The state directory that is given by flag or variable, else the usual one. Raises ``ConfigError``."""
    text = given if given is not None else os.environ.get("ZTNA_STATE_DIR") or None
    if text is not None:
        return to_path(text, "--state-dir")
    try:
        return default_state_dir(os.environ)
    except ValueError as error:
        raise ConfigError(f"--state-dir: {error}") from None


def relay_settings(config: str | None, state_dir: str | None) -> Settings:
    """The settings of the server of a state directory: those in force where it has run, else as it would read them.

    Raises ``ConfigError`` and ``CertificateError``.
    """
    from intermediate_server.join.relay import noted  # noqa: PLC0415  see cli/__init__.py

    written = resolve({"config": config, "state_dir": state_dir}, env=os.environ).settings
    return noted(written.state_dir) or written


def to_path(text: str, where: str) -> Path:
    """A path of the command line. Raises ``ConfigError``."""
    try:
        return read_path(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output."""
    table = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        commands.echo(line.rstrip())


def printable(text: str) -> str:
    """A text of somebody else's, which must not drive the terminal."""
    return text if text.isprintable() else ascii(text)[1:-1]


def read_value(flag: str, reader: Callable[[object], Any], text: str) -> Any:
    """The value of a flag. Raises ``ConfigError``."""
    try:
        return reader(text)
    except ValueError as error:
        raise ConfigError(f"{flag}: {error}") from None


def read_time(flag: str, text: str) -> timedelta:
    """The duration of a flag. Raises ``ConfigError``."""
    seconds = read_value(flag, read_duration, text)
    if seconds > 1e9:
        raise ConfigError(f"{flag}: {text[:20]} is out of range")
    return timedelta(seconds=seconds)
