"""The text of a profile: TOML with PEM blocks, and readers of its values that quote none of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from intermediate_server.errors import CertificateError
from intermediate_server.pki import keys
from intermediate_server.types import Role

_HEAD = "# Profile of a client of intermediate-server. It holds a private key: let nobody else read it.\n"


class ProfileError(CertificateError):
    """A profile cannot be read or written; the text says what to do."""


class NewerProfile(ProfileError):
    """A newer version has written the profile."""


class LockedProfile(ProfileError):
    """The private key of a profile has a passphrase."""


def render(texts: Mapping[str, Any], blocks: Mapping[str, bytes]) -> bytes:
    """The bytes of a profile: its short values, and its PEM blocks last, so that a file that was cut misses some."""
    lines = [_HEAD, *(f"{key} = {_toml(value)}\n" for key, value in texts.items())]
    lines += [f"{key} = '''\n{block.decode()}'''\n" for key, block in blocks.items()]
    return "".join(lines).encode(errors="surrogatepass")


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, datetime):
        # Not strftime, which writes years before 1000 in fewer digits.
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"
    return json.dumps(value, ensure_ascii=False)


def read_text(body: Mapping[str, Any], key: str) -> str:
    """A text; a short one is printable. Raises ``ProfileError``."""
    value = body.get(key)
    block = key in ("key", "certificate", "ca")
    if not isinstance(value, str) or not value or not (block or (value.isprintable() and len(value) <= 300)):
        raise ProfileError(f"the key {key} is {'missing' if value is None else 'no usable text'}")
    return value


def read_texts(body: Mapping[str, Any], key: str, *, least: int) -> tuple[str, ...]:
    """A list of short texts, at least ``least`` of them. Raises ``ProfileError``."""
    value = body.get(key)
    if not isinstance(value, list) or not least <= len(value) <= 256:
        raise ProfileError(f"the key {key} is no list of {least} to 256 texts")
    return tuple(read_text({key: item}, key) for item in value)


def read_certificates(body: Mapping[str, Any], key: str) -> bytes:
    """Certificates, PEM, at least one. Raises ``ProfileError``."""
    try:
        return keys.certificate_pem(*keys.parse_certificates(read_text(body, key).encode(), ""))
    except ProfileError:
        raise
    except CertificateError:
        raise ProfileError(f"the certificates of its key {key} cannot be read") from None


def read_moment(body: Mapping[str, Any], key: str) -> datetime:
    """A time, aware UTC. Raises ``ProfileError``."""
    value = body.get(key)
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ProfileError(f"the key {key} is no time with its zone")
    return value.astimezone(UTC)


def read_role(body: Mapping[str, Any]) -> Role:
    """The role. Raises ``ProfileError``."""
    word = read_text(body, "role")
    role = next((role for role in Role if role.value == word), None)
    if role is None:
        raise ProfileError("the role is neither agent nor connector")
    return role


def read_token(body: Mapping[str, Any], key: str) -> bytes:
    """The id of a token, 6 bytes. Raises ``ProfileError``."""
    text = read_text(body, key)
    try:
        token = bytes.fromhex(text)
    except ValueError:
        token = b""
    if len(token) != 6 or token.hex() != text:
        raise ProfileError("the key token is no id of a token")
    return token
