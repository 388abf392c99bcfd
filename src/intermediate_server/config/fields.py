"""What the models of settings share: words to choose among, groups of ``--help``, kinds."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal

from intermediate_server.config.values import Reads, read_choice

ClientAuth = Annotated[Literal["required", "optional", "off"], Reads(read_choice("required", "optional", "off"))]
LogFormat = Annotated[Literal["console", "json"], Reads(read_choice("console", "json"))]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], Reads(read_choice("debug", "info", "warning", "error"))
]
Switch = Annotated[Literal["auto", "off"], Reads(read_choice("auto", "off"))]

Direct = Annotated[Literal["all", "own", "off"], Reads(read_choice("all", "own", "off"))]
PrivateCandidates = Annotated[Literal["same-network", "always"], Reads(read_choice("same-network", "always"))]

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
