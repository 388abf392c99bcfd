"""The exchange by which a device joins, renews its certificate and leaves (docs/protocol.md section 5).

One request goes up a stream of the ALPN ``ztna-join/1`` and one answer comes down. Each is one flat JSON object of at
most 16 KiB whose keys are ``v``, ``type`` and the fields of the message, all of them and no other: an unknown key may
be a limit that the reader would overlook, and readers differ about a key that is given twice.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from intermediate_server.errors import IntermediateServerError
from intermediate_server.types import Role

VERSION = 1
"""The value of ``v``; it grows when the meaning of a message changes."""

MAX_BYTES = 16 << 10
"""Most bytes of a request or an answer."""

MAX_CSR_BYTES = 8 << 10
"""Most bytes of a certificate signing request, DER; one of an RSA key of 4096 bits has about 1,200."""

MAX_NAMES = 256
"""Most services of an answer."""

MAX_SERVERS = 8
"""Most addresses of relays in an answer."""

MAX_SENTENCE = 500
"""Most characters of the sentence of a refusal."""

MAX_RETRY_AFTER = 3600.0
"""Longest wait, in seconds, that an answer may ask for."""


class MessageError(IntermediateServerError):
    """Bytes are not a message of the exchange; the text says why and quotes only keys."""


@dataclass(frozen=True, slots=True)
class Join:
    """The holder of a join token asks for its first certificate."""

    token_id: bytes
    """6 bytes; names the token in logs."""
    secret: bytes = field(repr=False)
    """20 bytes; proves possession of the token."""
    csr: bytes = field(repr=False)
    """PKCS #10, DER (RFC 2986); its key and its signature count, its names do not."""
    host: str
    """The host's own name: up to 255 printable characters, empty where it has none."""
    version: str
    """The version of the client: up to 64 printable characters."""


@dataclass(frozen=True, slots=True)
class Renew:
    """The holder of the certificate that the handshake showed asks for its next one."""

    csr: bytes = field(repr=False)
    """PKCS #10, DER (RFC 2986), with the same key or with another one."""


@dataclass(frozen=True, slots=True)
class Leave:
    """The holder of the certificate that the handshake showed gives its identity up."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate, and all that its holder needs to connect."""

    chain: str
    """The certificate and the intermediates above it, PEM."""
    ca: str
    """The CAs by which to know the relay, PEM; two during a rollover."""
    servers: tuple[str, ...]
    """Addresses of the relay, the first to be dialled first: 1 to 8 of up to 300 characters."""
    server_name: str
    """The name that the relay's certificate must have; up to 255 characters."""
    name: str
    """The name of the identity: 1 to 64 characters."""
    role: Role
    services: tuple[str, ...]
    """Up to 256 of up to 200 characters; ``*`` is every service."""
    renew_after: datetime
    """When to ask for the next certificate; aware UTC, whole seconds."""
    server_time: datetime
    """The relay's clock when it answered; aware UTC, whole seconds."""


@dataclass(frozen=True, slots=True)
class Pending:
    """The join waits for the approval of an operator; the same request is to be repeated."""

    retry_after: float
    """Seconds until then, above 0 and up to 3600."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The request is refused."""

    cause: str
    """A slug: the kind of reason (docs/protocol.md section 5.4); readers accept unknown ones."""
    sentence: str
    """The reason for people, with what to do next: up to 500 printable characters."""
    again: bool
    """Whether the same request may succeed later."""


@dataclass(frozen=True, slots=True)
class Left:
    """The identity has ended."""


Request = Join | Renew | Leave
Answer = Issued | Pending | Refused | Left

_SLUG = re.compile(r"[a-z][a-z0-9-]{0,31}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n -]+-----END CERTIFICATE-----\n")


def parse_request(data: bytes) -> Request:
    """Read a request. Raises ``MessageError``."""
    request: Request = _parse(data, _REQUESTS)
    return request


def parse_answer(data: bytes) -> Answer:
    """Read an answer. Raises ``MessageError``."""
    answer: Answer = _parse(data, _ANSWERS)
    return answer


def encode(message: Request | Answer) -> bytes:
    """The bytes of a message. Raises ``MessageError`` for one that no reader would accept."""
    name, form = _FORMS[type(message)]
    body: dict[str, object] = {"v": VERSION, "type": name}
    for key, value in form.items():
        body[key] = value.write(getattr(message, key))
        _field(body, key, value)
    data = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    if len(data) > MAX_BYTES:
        raise MessageError(f"has {len(data)} bytes; at most {MAX_BYTES} are allowed")
    return data


# Values: each is read from JSON, and written so that it can be read again.


class _Value:
    """How one field travels; ``read`` returns None for a value that it refuses."""

    def __init__(
        self, read: Callable[[Any], Any], expected: str, *, write: Callable[[Any], object] = lambda value: value
    ) -> None:
        self.read = read
        self.expected = expected
        self.write = write


def _text(least: int, most: int) -> _Value:
    def read(value: object) -> str | None:
        good = isinstance(value, str) and least <= len(value) <= most and value.isprintable()
        return value if good and isinstance(value, str) else None

    return _Value(read, f"printable text of {least} to {most} characters")


def _texts(least: int, most: int, each: _Value) -> _Value:
    def read(value: object) -> tuple[str, ...] | None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            return None
        found = tuple(each.read(item) for item in value)
        return None if None in found else found

    return _Value(read, f"a list of {least} to {most} times {each.expected}", write=list)


def _base64(least: int, most: int) -> _Value:
    def read(value: object) -> bytes | None:
        try:
            data = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
        except (binascii.Error, ValueError):
            return None
        # One text for one value: no stray bits behind the last byte.
        whole = least <= len(data) <= most and base64.b64encode(data).decode() == value
        return data if whole else None

    size = f"{least}" if least == most else f"{least} to {most}"
    return _Value(read, f"base64 of {size} bytes", write=lambda value: base64.b64encode(value).decode())


def _read_id(value: object) -> bytes | None:
    if not isinstance(value, str) or re.fullmatch(r"[0-9a-f]{12}", value) is None:
        return None
    return bytes.fromhex(value)


def _read_pem(value: object) -> str | None:
    return value if isinstance(value, str) and _PEM.fullmatch(value) is not None else None


def _read_role(value: object) -> Role | None:
    return next((role for role in Role if role.value == value), None)


def _read_slug(value: object) -> str | None:
    return value if isinstance(value, str) and _SLUG.fullmatch(value) is not None else None


def _read_flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _read_wait(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value <= MAX_RETRY_AFTER else None


def _read_time(value: object) -> datetime | None:
    if not isinstance(value, str) or _TIME.fullmatch(value) is None:
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


def _write_time(value: datetime) -> str:
    # Not strftime, which writes years before 1000 in fewer digits.
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


_CSR = _base64(1, MAX_CSR_BYTES)
_CERTIFICATES = _Value(_read_pem, "certificates in PEM")
_MOMENT = _Value(_read_time, "a time such as 2026-01-01T00:00:00Z", write=_write_time)

_Form = dict[str, _Value]

_FORMS: dict[type, tuple[str, _Form]] = {
    Join: (
        "join",
        {
            "token_id": _Value(_read_id, "12 hexadecimal digits", write=bytes.hex),
            "secret": _base64(20, 20),
            "csr": _CSR,
            "host": _text(0, 255),
            "version": _text(0, 64),
        },
    ),
    Renew: ("renew", {"csr": _CSR}),
    Leave: ("leave", {}),
    Issued: (
        "issued",
        {
            "chain": _CERTIFICATES,
            "ca": _CERTIFICATES,
            "servers": _texts(1, MAX_SERVERS, _text(1, 300)),
            "server_name": _text(1, 255),
            "name": _text(1, 64),
            "role": _Value(_read_role, "agent or connector", write=lambda role: role.value),
            "services": _texts(0, MAX_NAMES, _text(1, 200)),
            "renew_after": _MOMENT,
            "server_time": _MOMENT,
        },
    ),
    Pending: ("pending", {"retry_after": _Value(_read_wait, f"a number above 0 and up to {MAX_RETRY_AFTER:g}")}),
    Refused: (
        "refused",
        {
            "cause": _Value(_read_slug, "a slug of up to 32 characters"),
            "sentence": _text(1, MAX_SENTENCE),
            "again": _Value(_read_flag, "true or false"),
        },
    ),
    Left: ("left", {}),
}

_REQUESTS: Sequence[type[Any]] = (Join, Renew, Leave)
_ANSWERS: Sequence[type[Any]] = (Issued, Pending, Refused, Left)


def _parse(data: bytes, types: Sequence[type[Any]]) -> Any:
    if len(data) > MAX_BYTES:
        raise MessageError(f"has {len(data)} bytes; at most {MAX_BYTES} are allowed")
    try:
        body = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except MessageError:
        raise
    except RecursionError:
        raise MessageError("is nested too deeply") from None
    except ValueError:
        raise MessageError("is not JSON") from None
    if not isinstance(body, dict):
        raise MessageError("is not a JSON object")
    version = body.get("v")
    if type(version) is not int or version != VERSION:
        raise MessageError(f'has no "v" of {VERSION}; this side speaks no other version of ztna-join')
    known = {_FORMS[each][0]: each for each in types}
    name = body.get("type")
    if not isinstance(name, str) or name not in known:
        raise MessageError(f'has no "type" out of {", ".join(known)}')
    form = _FORMS[known[name]][1]
    for key in body:
        if key not in form and key not in ("v", "type"):
            raise MessageError(f"of type {name} holds the unknown key {key[:40]!a}")
    return known[name](**{key: _field(body, key, value) for key, value in form.items()})


def _field(body: dict[str, Any], key: str, value: _Value) -> Any:
    if key not in body:
        raise MessageError(f"lacks the key {key}")
    found = value.read(body[key])
    if found is None:
        raise MessageError(f"has a {key} that is not {value.expected}")
    return found


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise MessageError("gives a key twice")
    return result


def _no_constant(name: str) -> Any:
    raise MessageError(f"holds {name}, which is not JSON")
