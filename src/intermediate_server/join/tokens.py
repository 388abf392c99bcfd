"""Join tokens: one line of text that names a relay, pins its CA and lets one device become a client of it.

The text is ``ztj1_`` and base64url without padding (RFC 4648 section 5) of: flags (1 byte: 1 for an agent, 2 for a
connector), the pin (32), the id (6), the secret (20), the number of servers and each with its length in front, the
server name with its length in front, and the CRC-32 of all before (4). Lengths and the number are one byte each. Every
token has exactly one spelling.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass, field

from intermediate_server.config.values import read_host, read_server
from intermediate_server.errors import ConfigError
from intermediate_server.types import Role

PREFIX = "ztj1_"
"""By which scanners for secrets find tokens."""
PIN_BYTES, ID_BYTES, SECRET_BYTES = 32, 6, 20
MAX_SERVERS = 8
MAX_CHARACTERS = 4096
DEFAULT_SERVER_NAME = "ztna-server"
"""The name that the relay's certificate carries, where a token names no other; the token is shorter without it."""

_FLAGS = {Role.AGENT: 1, Role.CONNECTOR: 2}
_OTHER_VERSION = re.compile(r"ztj[0-9]{1,6}_")
_CRC_BYTES = 4


class TokenError(ConfigError):
    """A text is no usable join token; the error quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class Token:
    """A join token with its secret. Raises ``TokenError`` where a token cannot hold a value."""

    role: Role
    """The role of whoever joins by it."""
    pin: bytes
    """SHA-256 of the topmost certificate that the relay shows to those who join, 32 bytes."""
    id: bytes
    """Names the token in logs and lists, 6 bytes; no secret."""
    secret: bytes = field(repr=False)
    """20 random bytes."""
    servers: tuple[str, ...]
    """Where the relay is, 1 to 8 of ``host``, ``host:port``, ``address`` or ``[address]:port``; 4433 is left out."""
    server_name: str = DEFAULT_SERVER_NAME
    """The name that the relay's certificate must carry."""

    def __post_init__(self) -> None:
        if (len(self.pin), len(self.id), len(self.secret)) != (PIN_BYTES, ID_BYTES, SECRET_BYTES):
            raise TokenError("a join token has a pin of 32 bytes, an id of 6 and a secret of 20")
        if not 1 <= len(self.servers) <= MAX_SERVERS:
            raise TokenError(f"a join token names 1 to {MAX_SERVERS} servers, not {len(self.servers)}")
        try:
            plain = all(read_server(server) == server for server in self.servers)
            plain = plain and read_host(self.server_name) == self.server_name
        except ValueError as error:
            raise TokenError(f"a join token cannot name this server: {error}") from None
        if not plain:
            raise TokenError("a join token names servers in lower case and without the port 4433")
        if len(str(self)) > MAX_CHARACTERS:
            raise TokenError("the servers of a join token are too long together; name fewer of them")

    @classmethod
    def new(cls, role: Role, *, pin: bytes, servers: tuple[str, ...], server_name: str = DEFAULT_SERVER_NAME) -> Token:
        """A token with a fresh id and secret; ``servers`` are written in any form. Raises ``TokenError``."""
        try:
            servers = tuple(dict.fromkeys(map(read_server, servers)))
            server_name = read_host(server_name)
        except ValueError as error:
            raise TokenError(f"a join token cannot name this server: {error}") from None
        return cls(role, pin, secrets.token_bytes(ID_BYTES), secrets.token_bytes(SECRET_BYTES), servers, server_name)

    @classmethod
    def parse(cls, text: str) -> Token:
        """Read a token; whitespace in it does not count. Raises ``TokenError``."""
        if len(text) > 2 * MAX_CHARACTERS:
            raise TokenError("this is too long for a join token; paste the token alone")
        word = "".join(text.split())
        if not word.startswith(PREFIX):
            if _OTHER_VERSION.match(word):
                raise TokenError("this join token is of a newer version; upgrade intermediate-server on this host")
            if PREFIX.startswith(word) and word:
                raise _cut()
            raise TokenError(
                f"this is no join token, which begins with {PREFIX}; make one on the relay with: "
                "intermediate-server token create"
            )
        token = _read(_decode(word[len(PREFIX) :]))
        if str(token) != word:
            raise _bad_copy()
        return token

    def __str__(self) -> str:
        """The token as people hand it on, with its secret."""
        name = b"" if self.server_name == DEFAULT_SERVER_NAME else self.server_name.encode()
        body = bytes((_FLAGS[self.role],)) + self.pin + self.id + self.secret + bytes((len(self.servers),))
        for text in (*(server.encode() for server in self.servers), name):
            body += bytes((len(text),)) + text
        body += zlib.crc32(body).to_bytes(_CRC_BYTES, "big")
        return PREFIX + base64.urlsafe_b64encode(body).decode().rstrip("=")


def secret_hash(secret: bytes) -> bytes:
    """The SHA-256 of a token's secret, which is all that the relay keeps of it."""
    return hashlib.sha256(secret).digest()


def _cut() -> TokenError:
    return TokenError("the join token is cut short; copy all of it")


def _bad_copy() -> TokenError:
    return TokenError("the join token was not copied well: its check sum is wrong; copy it again")


def _decode(word: str) -> bytes:
    """The bytes of base64url; of a text that is cut between two bytes those before."""
    whole = word[:-1] if len(word) % 4 == 1 else word
    try:
        return base64.b64decode(whole + "=" * (-len(whole) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _bad_copy() from None


def _read(data: bytes) -> Token:
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        if at + count > len(data):
            # Every length is in front of what it measures, so a token that lost its end always wants more.
            raise _cut()
        at += count
        return data[at - count : at]

    flags = take(1)[0]
    pin, token_id, secret = take(PIN_BYTES), take(ID_BYTES), take(SECRET_BYTES)
    servers = [take(take(1)[0]) for _ in range(take(1)[0])]
    name = take(take(1)[0])
    if take(_CRC_BYTES) != zlib.crc32(data[: at - _CRC_BYTES]).to_bytes(_CRC_BYTES, "big") or at != len(data):
        raise _bad_copy()
    role = next((role for role, flag in _FLAGS.items() if flag == flags), None)
    if role is None:
        raise TokenError("this join token is of a newer version; upgrade intermediate-server on this host")
    try:
        hosts, server_name = tuple(server.decode("ascii") for server in servers), name.decode("ascii")
    except UnicodeDecodeError:
        raise TokenError("this join token names no server; make one on the relay with: token create") from None
    return Token(role, pin, token_id, secret, hosts, server_name or DEFAULT_SERVER_NAME)
