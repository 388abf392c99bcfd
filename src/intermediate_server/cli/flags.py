"""Flags made from ``Settings``, so that a setting is declared once.

Every value arrives as text and is read by the settings themselves: a flag, a variable and a file key accept the same
and complain alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

from intermediate_server.cli.commands import Option
from intermediate_server.compat.arguments import ALIASES
from intermediate_server.config.clients import ClientSettings
from intermediate_server.config.fields import TABLES, TRUST
from intermediate_server.config.model import Settings
from intermediate_server.config.schema import Field, Model

_CONFIG_HELP = "Configuration file, TOML; a name ending in .json is read as the older server's."


def settings_flags() -> list[inspect.Parameter]:
    """One keyword-only parameter for each setting, None when not given, and for each option that is no setting."""
    return [
        _parameter("config", str, "--config", "PATH", text=_CONFIG_HELP),
        *(_setting(name, field) for name, field in Settings.model_fields.items() if field.kind != TABLES),
        *(
            _switch(name, f"--{name.replace('_', '-')}", f"The same as --client-auth {value}.", TRUST)
            for name, value in ALIASES.items()
        ),
    ]


def client_flags(model: type[ClientSettings]) -> list[inspect.Parameter]:
    """The same for an agent or a connector."""
    return [_parameter("config", str, "--config", "PATH", text="Configuration file, TOML."), *model_flags(model)]


def model_flags(model: type[Model]) -> list[inspect.Parameter]:
    """One keyword-only parameter for each setting of a model, None when not given."""
    return [_setting(name, field) for name, field in model.model_fields.items()]


def with_parameters(command: Callable[..., Any], parameters: list[inspect.Parameter]) -> Callable[..., Any]:
    """Give a command with ``**flags`` a signature that :mod:`commands` reads."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect reads
    return command


def _setting(name: str, field: Field) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    details = []
    if field.default not in (None, ()) and not field.made:
        details.append(f"default {field.show(field.default)}")
    if field.bounds:
        details.append(f"from {field.bounds}")
    text = f"{field.description} ({'; '.join(details)})" if details else field.description
    if field.is_flag:
        return _switch(name, f"{flag}/--no-{flag[2:]}", field.description, field.panel)
    kind = list[str] if field.repeatable else str
    return _parameter(name, kind, flag, field.kind, text=text, panel=field.panel)


def _switch(name: str, flag: str, text: str, panel: str) -> inspect.Parameter:
    option = Option(flag, help=text, panel=panel)
    return _keyword(name, Annotated[bool | None, option])


def _parameter(
    name: str, kind: Any, flag: str, metavar: str, *, text: str, panel: str = "Options"
) -> inspect.Parameter:
    option = Option(flag, metavar=metavar, help=text, panel=panel)
    return _keyword(name, Annotated[kind | None, option])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
