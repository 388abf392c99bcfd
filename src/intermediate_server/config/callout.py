"""The ``[callout]`` table: the operator's web service that decides about registrations."""

from __future__ import annotations

import ipaddress
from typing import Annotated
from urllib.parse import urlsplit

from intermediate_server.config.fields import CALLOUT
from intermediate_server.config.schema import Invalid, Model, Problem, check, setting
from intermediate_server.config.values import Duration, FilePath, Integer, Reads, Size, quote, show_duration, show_size

PATHS = ("token_file", "ca_cert")
"""Keys that name a file."""

MAX_DEADLINE = 1.9
"""Seconds. The server gives any policy 2 s; this deadline passes first, so that the error names the service."""


def read_url(value: object) -> str:
    """An ``https`` URL that holds no secret, or a plain ``http`` one of this host. Raises ``ValueError``."""
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("is not a URL")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("malformed URL") from None
    if parts.scheme not in ("https", "http") or not host:
        raise ValueError("must begin with https:// and a host")
    if "@" in parts.netloc or "?" in value or "#" in value:
        # Logs and errors show the URL.
        raise ValueError("must have no user, password, query or fragment; give a secret as token-file or token-env")
    if parts.scheme == "http" and not _is_this_host(host):
        raise ValueError("must be https://; plain http:// is for 127.0.0.1, [::1] and localhost only")
    return value


def _is_this_host(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_variable(value: object) -> str:
    """The name of an environment variable. Raises ``ValueError``."""
    if not isinstance(value, str) or not value.isascii() or not value.isidentifier():
        raise ValueError("is not the name of an environment variable")
    return value


class CalloutSettings(Model):
    """The service and the bounds of a question; immutable. Durations are seconds, sizes bytes."""

    url: Annotated[str, Reads(read_url)] = setting(
        CALLOUT, "URL", ..., "Each question is sent here by POST: https://, or http:// of this host."
    )
    token_file: FilePath | None = setting(
        CALLOUT,
        "PATH",
        None,
        "File with the bearer token; read again for each question, so that the token may be replaced.",
    )
    token_env: Annotated[str, Reads(read_variable)] | None = setting(
        CALLOUT, "NAME", None, "Environment variable that holds the bearer token, in place of token-file."
    )
    ca_cert: FilePath | None = setting(
        CALLOUT, "PATH", None, "CA that the service's certificate must chain to, PEM; by default those of the system."
    )
    deadline: Duration = setting(
        CALLOUT,
        "DURATION",
        1.5,
        "Time for one question; a late answer is a temporary denial.",
        low=0.01,
        high=MAX_DEADLINE,
    )
    cache: Duration = setting(
        CALLOUT,
        "DURATION",
        10.0,
        "An answer is used again for the same question for at most this long; 0 asks every time.",
        low=0,
        high=3600,
    )
    cache_size: Integer = setting(
        CALLOUT,
        "COUNT",
        10_000,
        "Answers kept; with more, the one unused for longest goes.",
        low=1,
        high=1_000_000,
    )
    concurrency: Integer = setting(
        CALLOUT,
        "COUNT",
        16,
        "Questions about new registrations at a time, more wait; half as many re-authorizations come on top.",
        low=1,
        high=64,
    )
    max_answer: Size = setting(
        CALLOUT, "SIZE", 16 << 10, "Longest answer; a longer one is a temporary denial.", low=256, high=1 << 20
    )

    @check
    def _check_token(self) -> None:
        if self.token_file is not None and self.token_env is not None:
            raise ValueError("token-file and token-env are both set; remove one")

    def __str__(self) -> str:
        """As an inline table of TOML, without what is at its default."""
        values = []
        for name, field in self.model_fields.items():
            value = getattr(self, name)
            if value == field.default:
                continue
            match name:
                case "deadline" | "cache":
                    text = f'"{show_duration(value)}"'
                case "max_answer":
                    text = f'"{show_size(value)}"'
                case "cache_size" | "concurrency":
                    text = f"{value}"
                case _:
                    text = '"' + f"{value}".replace("\\", "\\\\").replace('"', '\\"') + '"'
            values.append(f"{name.replace('_', '-')} = {text}")
        return f"{{ {', '.join(values)} }}"


def read_callout(value: object) -> CalloutSettings:
    """The ``[callout]`` table of a file. Raises ``ValueError`` with everything that is wrong in it."""
    if isinstance(value, CalloutSettings):
        return value
    if not isinstance(value, dict):
        raise ValueError("can only be written as a table in the configuration file")
    table = {str(key).replace("-", "_"): item for key, item in value.items()}
    if len(table) < len(value):
        raise ValueError("a key is given twice, with - and with _")
    try:
        return CalloutSettings.model_validate(table)
    except Invalid as error:
        raise ValueError("; ".join(map(_problem, error.problems))) from None


def _problem(problem: Problem) -> str:
    key = quote(problem.name.replace("_", "-"))
    if problem.name and problem.name not in CalloutSettings.model_fields:
        known = ", ".join(name.replace("_", "-") for name in CalloutSettings.model_fields)
        return f"unknown key {key}; known are {known}"
    return f"{key}: {problem.text}" if problem.name else problem.text


Callout = Annotated[CalloutSettings, Reads(read_callout)]
