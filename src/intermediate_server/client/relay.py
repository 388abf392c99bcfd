"""Which relay to dial and how, and dialling until one answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from intermediate_server.client.backoff import Backoff
from intermediate_server.client.connection import Connection
from intermediate_server.client.engine import ClientEngine, load_tls, split_server
from intermediate_server.errors import ConfigError, ConnectError

STAGGER = 0.25
"""Seconds between the first tries at each address of a relay (RFC 8305 section 5)."""
LOOK_UP = 1.0
"""Seconds between two look-ups of its name."""
MAX_TRIES_AT_ONCE = 16
SEND_QUEUE = 48 << 10
"""Bytes of DATAGRAMs that may wait: short, since an edge waits for room and does not drop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """A relay and what to prove to it."""

    server: str
    """``host:port``; without a port it is 4433."""
    ca_file: Path | str | None = None
    cert_file: Path | str | None = None
    key_file: Path | str | None = None
    readable_keys: bool = False
    """Whether everyone may be able to read the private key."""
    server_name: str | None = None
    """What the certificate must carry; by default the host."""
    verify: bool = True
    keep_alive: float = 1.5
    """Seconds of silence before a PING: how soon a relay that was killed and came back is noticed."""
    idle_timeout: float = 15.0
    """Seconds of silence after which the connection is given up."""
    handshake_timeout: float = 10.0

    def check(self) -> None:
        """Read every file that is named. Raises ``ConfigError`` and ``CertificateError``."""
        try:
            split_server(self.server)
        except ConnectError as error:
            raise ConfigError(f"server: {error}") from None
        load_tls(self.ca_file, self.cert_file, self.key_file, readable_keys=self.readable_keys, verify=self.verify)

    @property
    def host(self) -> str:
        """The host of ``server``."""
        return split_server(self.server)[0]


async def addresses(relay: Relay) -> list[tuple[str, int]]:
    """Every address of the relay, families in turn, looked up anew. Raises ``ConnectError``."""
    host, port = split_server(relay.server)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, ValueError) as error:  # ValueError: a name that no DNS message can hold
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
        readable_keys=relay.readable_keys,
        server_name=relay.server_name or relay.host,
        verify=relay.verify,
        keep_alive=relay.keep_alive,
        idle_timeout=relay.idle_timeout,
        handshake_timeout=relay.handshake_timeout,
        send_queue_bytes=SEND_QUEUE,
    )


async def dial(
    engine: ClientEngine, relay: Relay, known: list[tuple[str, int]], failed: Callable[[str], None]
) -> Connection:
    """Try until the relay answers; ``failed`` is told why each try failed.

    Tries overlap: a slow path gets the whole handshake timeout, and a relay that comes back is found by the next
    try within two seconds, whichever address it then has. ``known`` has the addresses of the last look-up, which are
    tried while the next one is under way or fails: a relay may be reachable when no name server is.
    """
    backoff = Backoff()
    looking = asyncio.create_task(_look_up(relay, known, failed))
    tries: list[asyncio.Task[Connection]] = []
    number = 0
    try:
        while True:
            if looking.done():
                looking.result()
                looking = asyncio.create_task(_look_up(relay, known, failed, pause=LOOK_UP))
                number = 0
            if known:
                if len(tries) == MAX_TRIES_AT_ONCE:
                    tries.pop(0).cancel()
                tries.append(asyncio.create_task(connect(engine, relay, known[number % len(known)])))
                number += 1
            # Each address has its turn within the delay: only the second one may lead there.
            delay = STAGGER if number < len(known) else max(STAGGER, backoff.delay() / max(1, len(known)))
            answered = await _first(tries, looking, delay, failed)
            if answered is not None:
                return answered
    finally:
        looking.cancel()
        for task in tries:
            # A try that succeeded meanwhile is one too many; a cancelled one is closed by the engine.
            if not task.cancel() and not task.cancelled() and task.exception() is None:
                task.result().abandon()


async def _look_up(
    relay: Relay, known: list[tuple[str, int]], failed: Callable[[str], None], *, pause: float = 0.0
) -> None:
    """Look the name up until it has other addresses than ``known``, which then has them."""
    while True:
        await asyncio.sleep(pause)
        pause = LOOK_UP
        try:
            found = await addresses(relay)
        except ConnectError as error:
            failed(str(error))
        else:
            if set(found) != set(known):
                known[:] = found
                return


async def _first(
    tries: list[asyncio.Task[Connection]], looking: asyncio.Task[None], delay: float, failed: Callable[[str], None]
) -> Connection | None:
    """The first try to succeed before other addresses are known or ``delay`` ends; those that failed are taken out."""
    loop = asyncio.get_running_loop()
    end = loop.time() + delay
    while not looking.done() and (left := end - loop.time()) > 0:
        done, _ = await asyncio.wait([*tries, looking], timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for task in [task for task in tries if task in done]:
            tries.remove(task)
            error = task.exception()
            if error is None:
                return task.result()
            failed(str(error))
    return None
