"""Declaration of a setting: its group, its kind, its default, its range and its sentence."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from intermediate_server.config.values import read_choice

ClientAuth = Annotated[
    Literal["required", "optional", "off"], BeforeValidator(read_choice("required", "optional", "off"))
]
LogFormat = Annotated[Literal["console", "json"], BeforeValidator(read_choice("console", "json"))]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], BeforeValidator(read_choice("debug", "info", "warning", "error"))
]
Switch = Annotated[Literal["auto", "off"], BeforeValidator(read_choice("auto", "off"))]

Direct = Annotated[Literal["all", "own", "off"], BeforeValidator(read_choice("all", "own", "off"))]
PrivateCandidates = Annotated[Literal["same-network", "always"], BeforeValidator(read_choice("same-network", "always"))]

POOL_V4, POOL_V6 = IPv4Network("100.64.0.0/10"), IPv6Network("fd64:7a74:6e61::/64")
"""The default pools of inner addresses, of relays and of their clients."""

# The groups of --help
NETWORK = "Network"
TRUST = "Certificates and trust"
JOINING = "Joining"
TIMES = "Timeouts"
LIMITS = "Limits"
INNER = "Inside the tunnel"
DIRECT = "Direct paths"
OPERATION = "Operation"
ACCESS = "Access rules"
CALLOUT = "[callout]"

TABLES = "TABLES"
"""The kind of a setting that only a file can hold."""

PATH_KINDS = frozenset({"PATH", "FILE|-"})
"""The kinds of settings that name a file."""


def setting(
    panel: str,
    kind: str,
    default: object,
    description: str,
    *,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A field: ``panel`` groups it in ``--help``, ``kind`` is the placeholder of its value there."""
    extra: dict[str, Any] = {"panel": panel, "kind": kind}
    if callable(default):
        return Field(default_factory=default, description=description, ge=low, le=high, json_schema_extra=extra)
    return Field(default, description=description, ge=low, le=high, json_schema_extra=extra)
