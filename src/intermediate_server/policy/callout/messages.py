"""Questions and answers as JSON: pure and strict.

An answer must be understood in full. An unknown key may be a misspelt limit, and readers differ about a key that is
given twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from intermediate_server.policy.base import UNLIMITED, Allow, Decision, Deny, Limits
from intermediate_server.types import Identity, Registration

VERSION = 1
"""Version in every question; it grows when the meaning of a question changes."""

MAX_TEXT = 200
"""Characters of ``rule`` and ``reason``, which go into every log line about the decision."""

_ALLOWING = ("allow", "rule", "limits", "valid_until", "direct")
_DENYING = ("allow", "rule", "reason")
_LIMITS = ("bytes_per_second", "packets_per_second", "bytes_per_month", "connections")


class BadAnswer(Exception):
    """The answer is malformed; the text says why and quotes only its keys."""


def question(registration: Registration) -> bytes:
    """The body of a question; equal facts give equal bodies.

    The source port is left out: it differs at each connection and says nothing about the peer.
    """
    facts = {
        "version": VERSION,
        "role": registration.role.value,
        "service": registration.service,
        "address": str(registration.peer.address.host),
        "identity": _identity(registration.peer.identity),
    }
    return json.dumps(facts, separators=(",", ":")).encode()


def _identity(identity: Identity | None) -> dict[str, object] | None:
    if identity is None:
        return None
    return {
        "fingerprint": identity.fingerprint,
        "key_hash": identity.key_hash.hex(),
        "subject": identity.subject,
        "dns_names": identity.dns_names,
        "uris": identity.uris,
        "not_before": identity.not_before.isoformat(),
        "not_after": identity.not_after.isoformat(),
    }


def decision(body: bytes) -> Decision:
    """The decision in the body of an answer. Raises ``BadAnswer``."""
    try:
        answer = json.loads(body.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except BadAnswer:
        raise
    except RecursionError:
        raise BadAnswer("is nested too deeply") from None
    except ValueError:
        raise BadAnswer("is not JSON") from None
    if not isinstance(answer, dict):
        raise BadAnswer("is not a JSON object")
    match answer.get("allow"):
        case True:
            _known(answer, _ALLOWING)
            return Allow(
                _text(answer, "rule"),
                _limits(answer.get("limits")),
                _moment(answer.get("valid_until")),
                _direct(answer.get("direct")),
            )
        case False:
            _known(answer, _DENYING)
            return Deny(_text(answer, "reason") or "the callout denies it", _text(answer, "rule"))
        case _:
            raise BadAnswer('has no "allow" that is true or false')


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise BadAnswer("gives a key twice")
    return result


def _no_constant(name: str) -> Any:
    raise BadAnswer(f"holds {name}, which is not JSON")


def _known(table: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in table:
        if key not in keys:
            raise BadAnswer(f"holds the key {key[:40]!a} beside or in place of {', '.join(keys)}")


def _text(answer: Mapping[str, Any], key: str) -> str:
    value = answer.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable():
        raise BadAnswer(f"has a {key} that is not printable text of at most {MAX_TEXT} characters")
    return value


def _limits(value: object) -> Limits:
    if value is None:
        return UNLIMITED
    if not isinstance(value, dict):
        raise BadAnswer("has limits that are not an object")
    _known(value, _LIMITS)
    for key, number in value.items():
        if number is not None and (type(number) is not int or not 1 <= number < 2**63):
            raise BadAnswer(f"has limits whose {key} is not a whole number of at least 1")
    return Limits(**value)


def _direct(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, bool):
        raise BadAnswer("has a direct that is not true or false")
    return value


def _moment(value: object) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        if moment is not None and moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise BadAnswer("has a valid_until that is not a time with its offset, such as 2026-01-01T00:00:00Z")
