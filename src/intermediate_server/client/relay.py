"""Which relay to dial and how, and dialling until one answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from intermediate_server.client.backoff import Backoff
from intermediate_server.client.connection import Connection
from intermediate_server.client.engine import ClientEngine, split_server
from intermediate_server.errors import ConnectError

STAGGER = 0.25
"""Seconds between the first tries at each address of a relay (RFC 8305 section 5)."""
MAX_TRIES_AT_ONCE = 8
SEND_QUEUE = 48 << 10
"""Bytes of DATAGRAMs that may wait: short, since an edge waits for room and does not drop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """A relay and what to prove to it."""

    server: str
    """``host:port``; without a port it is 4433."""
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None
    """What the certificate must carry; by default the host."""
    verify: bool = True
    keep_alive: float = 1.5
    """Seconds of silence before a PING: how soon a relay that was killed and came back is noticed."""
    idle_timeout: float = 15.0
    """Seconds of silence after which the connection is given up."""
    handshake_timeout: float = 10.0

    @property
    def host(self) -> str:
        """The host of ``server``."""
        return split_server(self.server)[0]


async def addresses(relay: Relay) -> list[tuple[str, int]]:
    """Every address of the relay, families in turn, looked up anew. Raises ``ConnectError``."""
    host, port = split_server(relay.server)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise ConnectError(f"{host} cannot be resolved: {error}") from error
    hosts = list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))
    first = [item for item in hosts if item[0] == hosts[0][0]]
    second = [item for item in hosts if item[0] != hosts[0][0]]
    turns = [item for pair in zip(first, second, strict=False) for item in pair]
    turns += first[len(second) :] + second[len(first) :]
    return [(host, port) for _, host in turns]


async def connect(engine: ClientEngine, relay: Relay, address: tuple[str, int] | None = None) -> Connection:
    """One try, at ``address`` or at the first one of the relay. Raises ``ConnectError``."""
    return await engine.connect(
        address or (await addresses(relay))[0],
        ca_file=relay.ca_file,
        cert_file=relay.cert_file,
        key_file=relay.key_file,
        server_name=relay.server_name or relay.host,
        verify=relay.verify,
        keep_alive=relay.keep_alive,
        idle_timeout=relay.idle_timeout,
        handshake_timeout=relay.handshake_timeout,
        send_queue_bytes=SEND_QUEUE,
    )


async def dial(engine: ClientEngine, relay: Relay, failed: Callable[[str], None]) -> Connection:
    """Try until the relay answers; ``failed`` is told why each try failed.

    Tries overlap: a slow path gets the whole handshake timeout, and a relay that comes back is found by the next
    try within two seconds, whichever address it then has.
    """
    backoff = Backoff()
    tries: set[asyncio.Task[Connection]] = set()
    number = 0
    try:
        while True:
            delay = backoff.delay()
            try:
                known = await addresses(relay)
            except ConnectError as error:
                failed(str(error))
            else:
                if len(tries) < MAX_TRIES_AT_ONCE:
                    address = known[number % len(known)]
                    tries.add(asyncio.create_task(connect(engine, relay, address)))
                number += 1
                if number < len(known):
                    delay = STAGGER
            answered = await _first(tries, delay, failed)
            if answered is not None:
                return answered
    finally:
        for task in tries:
            # A try that succeeded meanwhile is one too many; a cancelled one is closed by the engine.
            if not task.cancel() and not task.cancelled() and task.exception() is None:
                task.result().abandon()


async def _first(
    tries: set[asyncio.Task[Connection]], delay: float, failed: Callable[[str], None]
) -> Connection | None:
    """The first try to succeed within ``delay`` seconds; those that failed are taken out."""
    loop = asyncio.get_running_loop()
    end = loop.time() + delay
    while (left := end - loop.time()) > 0:
        if not tries:
            await asyncio.sleep(left)
            return None
        done, _ = await asyncio.wait(tries, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            tries.discard(task)
            error = task.exception()
            if error is None:
                return task.result()
            failed(str(error))
    return None
