"""Reads access rules from the configuration file; every error names its place."""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TypeVar

from intermediate_server.errors import ConfigError
from intermediate_server.policy.base import UNLIMITED, Limits
from intermediate_server.policy.patterns import REST, fold
from intermediate_server.policy.rules import Effect, May, Peers, Rule, Rules, Who

_KEYS = (
    "name",
    "effect",
    "peers",
    "dns",
    "spiffe",
    "fingerprint",
    "network",
    "agent",
    "connector",
    "services",
    "limits",
    "direct",
    "not-before",
    "not-after",
)
_LIMITS = ("bytes-per-second", "packets-per-second", "bytes-per-month", "connections")
_E = TypeVar("_E", bound=enum.Enum)
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def parse_rules(tables: Sequence[object]) -> Rules:
    """The rules of ``[[rules]]`` tables. Raises ``ConfigError``: nothing unknown or doubtful is skipped."""
    rules: list[Rule] = []
    names: set[str] = set()
    for number, table in enumerate(tables, start=1):
        place = f"rules[{number}]"
        if not isinstance(table, Mapping):
            raise ConfigError(f"{place}: must be a table")
        rule = _rule(table, place)
        if rule.name in names:
            raise ConfigError(f"{place}: the name {rule.name!r} is taken by an earlier rule")
        names.add(rule.name)
        rules.append(rule)
    return Rules(tuple(rules))


def _rule(table: Mapping[object, object], place: str) -> Rule:
    _known(table, _KEYS, place)
    name = table.get("name")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ConfigError(f"{place}: name must be text without control characters")
    place = f"{place} {name!r}"
    effect = _choice(Effect, table.get("effect", Effect.ALLOW.value), f"{place}: effect")
    limits = _limits(table.get("limits", {}), f"{place}: limits")
    if effect is Effect.DENY and limits != UNLIMITED:
        raise ConfigError(f"{place}: a rule that denies has no limits")
    direct = table.get("direct", True)
    if not isinstance(direct, bool):
        raise ConfigError(f"{place}: direct must be true or false")
    if effect is Effect.DENY and "direct" in table:
        raise ConfigError(f"{place}: a rule that denies says nothing about direct paths")
    not_before = _moment(table.get("not-before"), f"{place}: not-before")
    not_after = _moment(table.get("not-after"), f"{place}: not-after")
    if not_before is not None and not_after is not None and not_before >= not_after:
        raise ConfigError(f"{place}: not-before must be earlier than not-after")
    who = _who(table, place)
    may = _may(table, place)
    if limits.bytes_per_month is not None and who.peers is not Peers.CERTIFIED:
        # An anonymous peer has no lasting identity to count a month for.
        raise ConfigError(f"{place}: limits: bytes-per-month is counted for certified peers only")
    if may.by_certificate and who.peers is Peers.ANONYMOUS:
        raise ConfigError(f'{place}: services = "certificate" can never hold for anonymous peers')
    return Rule(
        name=name,
        effect=effect,
        who=who,
        may=may,
        limits=limits,
        direct=direct,
        not_before=not_before,
        not_after=not_after,
    )


def _who(table: Mapping[object, object], place: str) -> Who:
    dns = _texts(table, "dns", place)
    spiffe = _texts(table, "spiffe", place)
    fingerprints = tuple(text.replace(":", "").lower() for text in _texts(table, "fingerprint", place))
    for pattern in dns:
        _only_outermost(pattern, pattern.split(".")[1:], f"{place}: dns", "first label")
    for pattern in spiffe:
        if not pattern.startswith("spiffe://") or "*" in pattern.split("/")[2]:
            raise ConfigError(f"{place}: spiffe {pattern!r} must begin with spiffe:// and a trust domain without stars")
        _only_outermost(pattern, pattern.split("/")[:-1], f"{place}: spiffe", "last segment")
    for fingerprint in fingerprints:
        if _FINGERPRINT.fullmatch(fingerprint) is None:
            raise ConfigError(f"{place}: fingerprint must be SHA-256 as 64 hex digits")
    proven = bool(dns or spiffe or fingerprints)
    given = table.get("peers")
    if given is None and not proven:
        raise ConfigError(
            f'{place}: say whom it is for: dns, spiffe or fingerprint, or peers = "certified", "anonymous" or "anyone"'
        )
    peers = Peers.CERTIFIED if given is None else _choice(Peers, given, f"{place}: peers")
    if proven and peers is not Peers.CERTIFIED:
        raise ConfigError(f"{place}: dns, spiffe and fingerprint are for certified peers only")
    return Who(
        peers=peers,
        dns=dns,
        spiffe=spiffe,
        fingerprints=fingerprints,
        networks=tuple(_network(text, place) for text in _texts(table, "network", place)),
    )


def _may(table: Mapping[object, object], place: str) -> May:
    agent = _texts(table, "agent", place, empty=True)
    connector = _texts(table, "connector", place, empty=True)
    if "services" in table:
        if table["services"] != "certificate":
            raise ConfigError(f'{place}: services can only be "certificate"; name services under agent and connector')
        if agent or connector:
            raise ConfigError(f"{place}: services and agent or connector exclude each other")
        return May(by_certificate=True)
    if not agent and not connector:
        raise ConfigError(f'{place}: name services under agent or connector, or set services = "certificate"')
    return May(agent=tuple(map(fold, agent)), connector=tuple(map(fold, connector)))


def _limits(value: object, place: str) -> Limits:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place}: must be a table")
    _known(value, _LIMITS, place)
    numbers: dict[str, int] = {}
    for key, number in value.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number < 2**63:
            raise ConfigError(f"{place}: {key} must be a whole number of at least 1")
        numbers[str(key).replace("-", "_")] = number
    return Limits(**numbers)


def _network(text: str, place: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ConfigError(f"{place}: network: {error}") from None
    # Mapped addresses of peers are held as IPv4, so such a network would never match.
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise ConfigError(f"{place}: network {text!r} is IPv4-mapped; write it as IPv4")
    return network


def _moment(value: object, place: str) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ConfigError(f"{place}: must be a date and time with its offset, such as 2026-01-01T00:00:00Z")
    return value


def _texts(table: Mapping[object, object], key: str, place: str, *, empty: bool = False) -> tuple[str, ...]:
    value = table.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ConfigError(f"{place}: {key} must be a list of texts")
    if not value and not empty:
        raise ConfigError(f"{place}: {key} is empty, which would state nothing; leave it out to mean that")
    for text in value:
        if not text or not text.isprintable():
            raise ConfigError(f"{place}: {key} holds an empty or unprintable text")
    return tuple(value)


def _only_outermost(pattern: str, inner: Sequence[str], place: str, where: str) -> None:
    if any(REST in part for part in inner):
        raise ConfigError(f'{place} {pattern!r}: "{REST}" may only be the {where}')


def _choice(kind: type[_E], value: object, place: str) -> _E:
    try:
        return kind(value)
    except ValueError:
        words = ", ".join(f'"{member.value}"' for member in kind)
        raise ConfigError(f"{place} must be one of {words}") from None


def _known(table: Iterable[object], keys: Sequence[str], place: str) -> None:
    for key in table:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(keys)}"
            raise ConfigError(f"{place}: unknown key {key!r}{hint}")
