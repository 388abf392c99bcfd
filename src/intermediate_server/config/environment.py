"""Settings from the environment: variables with our prefix, except those of container platforms."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

from intermediate_server.errors import ConfigError

_SERVICE_LINK = re.compile(
    r"(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_SERVICE_URL = re.compile(r"(?:tcp|udp|sctp)://.*")


def settings_from(
    env: Mapping[str, str], prefix: str, *, paths: Container[str], lists: Container[str]
) -> dict[str, str | list[str]]:
    """The variables that begin with ``prefix``, by field name; an empty one counts as unset. Raises ``ConfigError``.

    Variables of ``lists`` hold several values with commas or whitespace between them.

    Compose files and unit templates write an unset variable as an empty one. An empty variable of ``paths`` is an
    error: without its list, a revoked certificate would be let in.
    """
    values: dict[str, str | list[str]] = {}
    for variable, value in env.items():
        word = variable.removeprefix(prefix)
        name = word.lower()
        if word == variable or _is_service_link(word, value):
            continue
        if value:
            values[name] = split(value) if name in lists else value
            if not values[name]:
                raise ConfigError(f"{variable}: holds no value; unset it, or give one")
        elif name in paths:
            raise ConfigError(f"{variable}: an empty path; name a file, or unset the variable")
    return values


def split(text: str) -> list[str]:
    """The values in one text.

    A part without ``=`` is a further backend of the part before it: ``web=tcp://a:1,tcp://b:1,db=tcp://c:2`` holds two.
    """
    values: list[str] = []
    for word in re.sub(r"\s*,\s*", ",", text).split():
        parts: list[str] = []
        for part in filter(None, word.split(",")):
            if parts and "=" in parts[-1] and "=" not in part:
                parts[-1] += f",{part}"
            else:
                parts.append(part)
        values += parts
    return values


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes sets the variable for a Service whose name, such as ``ztna``, begins as our prefix does.

    ``ZTNA_PORT`` and ``ZTNA_METRICS_PORT`` are settings too; of those two kinds only one holds a URL.
    """
    if _SERVICE_LINK.fullmatch(name):
        return True
    return (name == "PORT" or name.endswith("_PORT")) and _SERVICE_URL.fullmatch(value) is not None
