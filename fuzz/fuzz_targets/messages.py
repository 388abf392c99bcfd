"""Any bytes are read as a message of the exchange or refused by ``MessageError``; what was read has one meaning."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports():
    from intermediate_server.join import messages

SEEDS = (
    b'{"v":1,"type":"join","token_id":"000102030405","secret":"AAAAAAAAAAAAAAAAAAAAAAAAAAA=","csr":"MAA=",'
    b'"host":"office","version":"1"}',
    b'{"v":1,"type":"renew","csr":"MAA="}',
    b'{"v":1,"type":"leave"}',
    b'{"v":1,"type":"issued","chain":"-----BEGIN CERTIFICATE-----\\nMAA=\\n-----END CERTIFICATE-----\\n",'
    b'"ca":"-----BEGIN CERTIFICATE-----\\nMAA=\\n-----END CERTIFICATE-----\\n","servers":["relay.example.com"],'
    b'"server_name":"ztna-server","name":"office","role":"connector","services":["web"],'
    b'"renew_after":"2026-01-04T00:00:00Z","server_time":"2026-01-01T00:00:00Z"}',
    b'{"v":1,"type":"pending","retry_after":10}',
    b'{"v":1,"type":"refused","cause":"used","sentence":"token was used","again":false}',
    b'{"v":1,"type":"left"}',
)


def check(data: bytes) -> None:
    """One input, read as a request and as an answer."""
    for parse in (messages.parse_request, messages.parse_answer):
        try:
            message = parse(data)
        except messages.MessageError:
            continue
        assert parse(messages.encode(message)) == message


def main() -> None:
    """``messages.py CORPUS [CORPUS...] [FLAGS of libFuzzer]``; the first corpus is given one message of each type."""
    for number, seed in enumerate(SEEDS):
        Path(sys.argv[1], f"message-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
