"""Any text is read as a join token or refused by ``TokenError``, which quotes nothing; a token has one spelling."""

from __future__ import annotations

import base64
import sys
import zlib
from pathlib import Path

import atheris

with atheris.instrument_imports():
    from intermediate_server.join.tokens import PREFIX, Token, TokenError
    from intermediate_server.types import Role


def check(data: bytes) -> None:
    """One input: as text, and as the content of a token whose check sum is right."""
    check_text(data.decode("utf-8", "replace"))
    check_text(PREFIX + base64.urlsafe_b64encode(data + zlib.crc32(data).to_bytes(4, "big")).decode().rstrip("="))


def check_text(text: str) -> None:
    try:
        token = Token.parse(text)
    except TokenError as error:
        assert len(text) < 12 or text[5:] not in str(error)
        return
    assert str(token) == "".join(text.split())
    assert Token.parse(str(token)) == token


def main() -> None:
    """``join_token.py CORPUS [CORPUS...] [FLAGS of libFuzzer]``; the first corpus is given two tokens."""
    for number, servers in enumerate((("relay.example.com",), ("192.0.2.1", "[2001:db8::1]:5000"))):
        token = Token(Role.AGENT, bytes(32), bytes(6), bytes(20), servers, "ztna-server" if number else "relay.example")
        Path(sys.argv[1], f"token-{number}").write_text(str(token))
        body = base64.urlsafe_b64decode(str(token)[5:] + "==")[:-4]
        Path(sys.argv[1], f"body-{number}").write_bytes(body)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
