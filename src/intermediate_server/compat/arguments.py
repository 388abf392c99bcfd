"""The older server's command line: arguments without a flag, and yes-or-no flags for a setting with three values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intermediate_server.errors import ConfigError

POSITIONAL = ("port", "cert", "key", "bind", "external_ip")
"""The settings that its arguments without a flag stand for, in order."""

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
