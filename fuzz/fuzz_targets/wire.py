"""Any bytes are read as a message or refused by ``WireError``; what was read can be written and read again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports():
    from intermediate_server.errors import WireError
    from intermediate_server.wire import datagrams, signaling

VECTORS = Path(__file__).resolve().parents[2] / "tests" / "vectors"


def check(data: bytes) -> None:
    """One input: a DATAGRAM, a signaling payload and a frame around one."""
    for decode in (datagrams.decode_control, datagrams.decode_service_routed, datagrams.decode_server):
        message = decode(data)
        if isinstance(message, datagrams.Message):
            assert decode(datagrams.encode(message)) == message
    check_payload(data)
    check_payload(data[4:])


def check_payload(payload: bytes) -> None:
    try:
        message = signaling.decode(payload)
    except WireError:
        return
    assert signaling.decode(signaling.encode(message)) == message


def main() -> None:
    """``wire.py CORPUS [CORPUS...] [FLAGS of libFuzzer]``; the first corpus is given the shared vectors."""
    for file in VECTORS.glob("*.json"):
        for number, vector in enumerate(json.loads(file.read_text())["vectors"]):
            Path(sys.argv[1], f"{file.stem}-{number}").write_bytes(bytes.fromhex(vector["hex"]))
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
