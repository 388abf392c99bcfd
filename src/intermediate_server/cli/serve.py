"""``serve`` and ``check-config``: from flags to checked settings, and to a running server."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

from intermediate_server.cli import commands
from intermediate_server.cli.flags import settings_flags, with_parameters
from intermediate_server.compat.arguments import with_positional
from intermediate_server.config import Resolved, Settings, resolve
from intermediate_server.errors import ConfigError


def register(app: commands.Group) -> None:
    """Add the commands of this module."""
    flags = settings_flags()
    positional = inspect.Parameter(
        "positional",
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=None,
        annotation=Annotated[list[str] | None, commands.Argument(hidden=True, metavar="OLD-ARGUMENTS")],
    )
    app.command("serve")(with_parameters(serve, [positional, *flags]))
    app.command("check-config")(with_parameters(check_config, [*check_parameters(), *flags]))


def serve(positional: list[str] | None = None, **flags: Any) -> None:
    """Run the server.

    Each flag is also a key of the configuration file (idle-timeout = "30s") and an environment variable
    (ZTNA_IDLE_TIMEOUT). Flags win over variables, variables over the file. SIGHUP reads file and certificates again.
    """
    given = with_positional(flags, positional or [])
    resolved = load_checked(given, os.environ)
    from intermediate_server.server import run  # noqa: PLC0415  a wrong flag need not wait for the engine

    code = run(resolved.settings, reloader(given, os.environ), config_file=resolved.file, warnings=resolved.warnings)
    raise commands.Exit(code)


def check_config(file: str | None = None, show: bool = False, **flags: Any) -> None:
    """Check configuration, rules, policy and certificate files as serve and reload do, and start nothing."""
    resolved = load_checked(named_file(file, flags), os.environ)
    from intermediate_server.access.capacity import fit  # noqa: PLC0415
    from intermediate_server.access.loading import check_access  # noqa: PLC0415  see cli/__init__.py
    from intermediate_server.server.listener import check_trust  # noqa: PLC0415

    check_trust(resolved.settings)
    check_access(resolved.settings)
    print_checked(replace(resolved, warnings=(*resolved.warnings, *fit(resolved.settings).warnings)), show=show)


def print_checked(resolved: Resolved[Any], *, show: bool) -> None:
    """Report a good configuration, and print it if asked for."""
    for warning in resolved.warnings:
        commands.echo(f"warning: {warning}", err=True)
    if show:
        for line in show_settings(resolved):
            commands.echo(line)
    commands.echo(f"{resolved.file or 'configuration (no file)'}: ok", err=show)


def named_file(file: str | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of ``check-config`` with its file, named with or without ``--config``."""
    if file is not None and flags.get("config") is not None:
        raise ConfigError("FILE, --config: name the configuration file once")
    return {**flags, "config": file if file is not None else flags.get("config")}


def check_parameters() -> list[inspect.Parameter]:
    """Options of ``check-config`` beside the settings."""
    file = inspect.Parameter(
        "file",
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=None,
        annotation=Annotated[str | None, commands.Argument(metavar="[FILE]", help="The same as --config FILE.")],
    )
    show = inspect.Parameter(
        "show",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, commands.Option("--show", help="Print every setting and where it comes from.")],
    )
    return [file, show]


def load_checked(flags: Mapping[str, Any], env: Mapping[str, str]) -> Resolved[Settings]:
    """Settings with readable rules and with certificate files that exist and belong together.

    Raises ``ConfigError`` and ``CertificateError``.
    """
    resolved = resolve(flags, env=env)
    settings = resolved.settings
    from intermediate_server.pki.keys import load_certificates  # noqa: PLC0415  see cli/__init__.py
    from intermediate_server.pki.material import load_server_material  # noqa: PLC0415
    from intermediate_server.policy.rules_file import parse_rules  # noqa: PLC0415

    if settings.cert is not None and settings.key is not None:
        load_server_material(settings.cert, settings.key, settings.ca_cert, readable=settings.readable_keys)
    elif settings.ca_cert is not None:
        load_certificates(settings.ca_cert)
    try:
        parse_rules(settings.rules or ())
    except ConfigError as error:
        raise ConfigError(f"{resolved.file}: {error}") from None
    return resolved


def reloader(flags: Mapping[str, Any], env: Mapping[str, str]) -> Callable[[], Settings]:
    """The reader for a reload: the same flags, the environment of the start, and the file as it is now."""
    frozen = dict(env)
    return lambda: load_checked(flags, frozen).settings


def show_settings(resolved: Resolved[Any]) -> list[str]:
    """The settings in effect, as a configuration file with the origin of each beside it."""
    lines = []
    fields = type(resolved.settings).model_fields
    for name in fields:
        value = getattr(resolved.settings, name)
        origin = resolved.origins.get(name, "default")
        key = name.replace("_", "-")
        if value is None:
            lines.append(f"# {key} is not set")
            continue
        if name == "rules":
            lines.append(f"# {len(value)} [[rules]]  # {origin}")
            continue
        if name == "callout":
            lines.append(f"{key} = {value}  # {origin}")
            continue
        if isinstance(value, tuple) and name != "bind":
            lines.append(f"{key} = [{', '.join(_quoted(str(item)) for item in value)}]  # {origin}")
            continue
        text = fields[name].show(value)
        plain = isinstance(value, bool) or (isinstance(value, int) and text.isdecimal())
        literal = text if plain else _quoted(text)
        lines.append(f"{key} = {literal}  # {origin}")
    return lines


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
