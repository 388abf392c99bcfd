"""The written cases of ``policy test``: a TOML file of registrations with the expected decisions."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from intermediate_server.access.explain import AccessQuery, Certificate
from intermediate_server.errors import ConfigError
from intermediate_server.types import Address, Identity, Role

EXAMPLE_SOURCE = "192.0.2.1"
"""The default source of a registration (an address of RFC 5737, which is for documentation)."""

MAX_FILE_BYTES = 1 << 20

_CASE = (
    "name",
    "cert",
    "dns",
    "spiffe",
    "fingerprint",
    "anonymous",
    "agent",
    "connector",
    "source",
    "at",
    "expect",
    "rule",
)
_WHO = ("cert", "dns", "spiffe", "fingerprint", "anonymous")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Case:
    """One written case."""

    name: str
    query: AccessQuery
    allowed: bool
    """The expected decision."""
    rule: str | None
    """The expected rule; None for any."""


@dataclass(frozen=True, slots=True)
class Cases:
    """A whole file."""

    config: Path | None
    """The configuration that is tested, if the file names one."""
    cases: tuple[Case, ...]


def read_cases(path: Path) -> Cases:
    """The cases of a file; its paths count from its directory. Raises ``ConfigError`` and ``CertificateError``."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes; split it")
        data = tomllib.loads(raw.decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "nested too deeply"
        raise ConfigError(f"{path}: not valid TOML: {ascii(reason[:200])[1:-1]}") from None
    _known(data, ("config", "cases"), f"{path}")
    config = data.get("config")
    if config is not None and not isinstance(config, str):
        raise ConfigError(f"{path}: config must be a path")
    tables = data.get("cases")
    if not isinstance(tables, list) or not tables:
        raise ConfigError(f"{path}: holds no [[cases]]")
    cases = tuple(_case(table, number, path) for number, table in enumerate(tables, start=1))
    return Cases(None if config is None else path.parent / Path(config).expanduser(), cases)


def _case(table: object, number: int, path: Path) -> Case:
    place = f"{path}: cases[{number}]"
    if not isinstance(table, Mapping):
        raise ConfigError(f"{place}: must be a table")
    _known(table, _CASE, place)
    name = _text(table, "name", place) or f"case {number}"
    place = f"{place} {name!r}"
    roles = [role for role in Role if role.value in table]
    if len(roles) != 1:
        raise ConfigError(f"{place}: name a service under agent or under connector, and under one of them")
    service = _text(table, roles[0].value, place)
    at = table.get("at")
    if at is not None and (not isinstance(at, datetime) or at.tzinfo is None):
        raise ConfigError(f"{place}: at must be a date and time with its offset, such as 2026-01-01T00:00:00Z")
    expect = table.get("expect")
    if expect not in ("allow", "deny"):
        raise ConfigError(f'{place}: expect must be "allow" or "deny"')
    query = AccessQuery(
        certificate=_certificate(table, place, path.parent),
        role=roles[0],
        service=service or "",
        source=read_source(_text(table, "source", place) or EXAMPLE_SOURCE, f"{place}: source"),
        at=at,
    )
    return Case(name, query, expect == "allow", _text(table, "rule", place))


def _certificate(table: Mapping[str, Any], place: str, directory: Path) -> Certificate | None:
    """The certificate of a case: a file, facts of one that is valid at any time, or None."""
    given = [key for key in _WHO if key in table]
    if not given:
        raise ConfigError(f"{place}: say who: cert, or dns, spiffe and fingerprint, or anonymous = true")
    if len(given) > 1 and ("cert" in given or "anonymous" in given):
        raise ConfigError(f"{place}: {' and '.join(given)} exclude each other")
    if given == ["anonymous"]:
        if table["anonymous"] is not True:
            raise ConfigError(f"{place}: anonymous can only be true; say who it is otherwise")
        return None
    if given == ["cert"]:
        return Certificate.read(directory / Path(_text(table, "cert", place) or "").expanduser())
    fingerprint = (_text(table, "fingerprint", place) or "0" * 64).replace(":", "").lower()
    if _FINGERPRINT.fullmatch(fingerprint) is None:
        raise ConfigError(f"{place}: fingerprint must be SHA-256 as 64 hex digits")
    dns_names = tuple(name.lower().removesuffix(".") for name in _texts(table, "dns", place))
    return Certificate(
        Identity(
            fingerprint=fingerprint,
            key_hash=bytes(32),
            subject="",
            dns_names=dns_names,
            uris=_texts(table, "spiffe", place),
            not_before=datetime.min.replace(tzinfo=UTC),
            not_after=datetime.max.replace(tzinfo=UTC),
        )
    )


def read_source(text: str, place: str) -> IPv4Address | IPv6Address:
    """An address as a peer's source. Raises ``ConfigError``."""
    try:
        return Address.of((text, 0)).host
    except ValueError:
        raise ConfigError(f"{place} must be an IP address, such as 192.0.2.1") from None


def _text(table: Mapping[str, Any], key: str, place: str) -> str | None:
    value = table.get(key)
    if key in table and (not isinstance(value, str) or (not value and key != "rule")):
        raise ConfigError(f"{place}: {key} must be text")
    return value


def _texts(table: Mapping[str, Any], key: str, place: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ConfigError(f"{place}: {key} must be a list of texts")
    return tuple(value)


def _known(table: Mapping[str, Any], keys: Sequence[str], place: str) -> None:
    for key in table:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(keys)}"
            raise ConfigError(f"{place}: unknown key {key!r}{hint}")
