"""The older server's command line: arguments without a flag, and yes-or-no flags for what has three values here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intermediate_server.errors import ConfigError

POSITIONAL = ("port", "cert", "key", "bind", "external_ip")
"""What its arguments without a flag mean, in order."""

ALIASES = {"require_client_cert": "required", "no_verify_peer": "off"}
"""Yes-or-no settings that are other names for a value of ``client_auth``."""


def with_positional(flags: Mapping[str, Any], positional: Sequence[str]) -> dict[str, Any]:
    """Flags, with the positional arguments where no flag is given. Raises ``ConfigError``."""
    if len(positional) > len(POSITIONAL):
        raise ConfigError(f"{len(positional)} arguments without a flag; at most 5 are known: {', '.join(POSITIONAL)}")
    merged = dict(flags)
    for name, value in zip(POSITIONAL, positional, strict=False):
        if merged.get(name) in (None, []):
            merged[name] = value
    return merged
