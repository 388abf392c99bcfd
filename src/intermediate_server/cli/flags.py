"""Flags made from ``Settings``, so that a setting is declared once.

Every value arrives as text and is read by the settings themselves: a flag, a variable and a file key accept the same
and complain alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from intermediate_server.compat.arguments import ALIASES
from intermediate_server.config.clients import ClientSettings
from intermediate_server.config.fields import TABLES, TRUST
from intermediate_server.config.loading import show_range, show_value
from intermediate_server.config.model import Settings

_CONFIG_HELP = "Configuration file, TOML; a name ending in .json is read as the older server's."


def settings_flags() -> list[inspect.Parameter]:
    """One keyword-only parameter for each setting, None when not given, and for each option that is no setting."""
    return [
        _parameter("config", str, "--config", "PATH", text=_CONFIG_HELP),
        *(_setting(name, field) for name, field in Settings.model_fields.items() if _kind(field) != TABLES),
        *(
            _switch(name, f"--{name.replace('_', '-')}", f"The same as --client-auth {value}.", TRUST)
            for name, value in ALIASES.items()
        ),
    ]


def client_flags(model: type[ClientSettings]) -> list[inspect.Parameter]:
    """The same for an agent or a connector."""
    return [_parameter("config", str, "--config", "PATH", text="Configuration file, TOML."), *model_flags(model)]


def model_flags(model: type[BaseModel]) -> list[inspect.Parameter]:
    """One keyword-only parameter for each setting of a model, None when not given."""
    return [_setting(name, field) for name, field in model.model_fields.items()]


def with_parameters(command: Callable[..., Any], parameters: list[inspect.Parameter]) -> Callable[..., Any]:
    """Give a command with ``**flags`` a signature for typer."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect reads
    return command


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _kind(field: FieldInfo) -> str:
    return str(_extra(field)["kind"])


def _setting(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    panel = str(_extra(field)["panel"])
    details = []
    if field.default is not None and field.default_factory is None and field.default != ():
        details.append(f"default {show_value(field, field.default)}")
    bounds = show_range(field)
    if bounds:
        details.append(f"from {bounds}")
    text = f"{field.description} ({'; '.join(details)})" if details else str(field.description)
    if field.annotation is bool:
        return _switch(name, f"{flag}/--no-{flag[2:]}", str(field.description), panel)
    kind = list[str] if field.default == () else str
    return _parameter(name, kind, flag, _kind(field), text=text, panel=panel)


def _switch(name: str, flag: str, text: str, panel: str) -> inspect.Parameter:
    option = typer.Option(flag, help=text, rich_help_panel=panel, show_default=False)
    return _keyword(name, Annotated[bool | None, option])


def _parameter(
    name: str, kind: Any, flag: str, metavar: str, *, text: str, panel: str | None = None
) -> inspect.Parameter:
    option = typer.Option(flag, metavar=metavar, help=text, rich_help_panel=panel, show_default=False)
    return _keyword(name, Annotated[kind | None, option])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
