"""``python -m bench.guesses PORT CA GUESSES``: joins with wrong tokens, as fast as the relay ends them.

Prints one JSON object: how often each end came. A program of its own, so that it can give way to the load generator.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections import Counter
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bench.certificates import SERVER_NAME
from intermediate_server.engine import ClientTls, Command, ConnectConfig, Engine, Event
from intermediate_server.engine.bridge import Bridge
from intermediate_server.join.messages import Join, encode
from intermediate_server.pki import keys

SOURCES = 50
UNDER_WAY = 200
"""Guesses at once."""


async def guess(port: int, pin: bytes, guesses: int) -> Counter[str]:
    """Ask with wrong secrets from addresses in turn; how often each end came."""
    outcomes: Counter[str] = Counter()
    key = keys.new_key()
    request = x509.CertificateSigningRequestBuilder().subject_name(keys.common_name("guess")).sign(key, keys.SHA256)
    csr = request.public_bytes(Encoding.DER)
    tls = ClientTls(pin=pin)
    places, waiting = asyncio.Semaphore(UNDER_WAY), set(range(guesses))
    done = asyncio.Event()

    def ended(event: Event) -> None:
        match event:
            case Event.Answered(request=number):
                outcome = "answered"
            case Event.ConnectFailed(request=number):
                outcome = f"{event.cause} {event.code}"
            case _:
                return
        outcomes[outcome] += 1
        waiting.discard(number)
        places.release()
        if not waiting:
            done.set()

    engine = Engine()
    bridge = Bridge(engine)
    bridge.start(ended)
    try:
        for number in range(guesses):
            await places.acquire()
            config = ConnectConfig(
                remote=("127.0.0.1", port),
                server_name=SERVER_NAME,
                tls=tls,
                bind=(f"127.0.1.{number % SOURCES + 1}", 0),
                handshake_timeout_ms=5_000,
            )
            join = Join(secrets.token_bytes(6), secrets.token_bytes(20), csr, "guess", "bench")
            bridge.submit(Command.Ask(number, config, encode(join)))
            await asyncio.sleep(0)
        await done.wait()
    finally:
        bridge.stop()
        engine.close(0)
    return outcomes


if __name__ == "__main__":
    ca = x509.load_pem_x509_certificate(Path(sys.argv[2]).read_bytes())
    print(json.dumps(asyncio.run(guess(int(sys.argv[1]), ca.fingerprint(keys.SHA256), int(sys.argv[3])))))
