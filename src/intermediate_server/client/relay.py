"""Which relay to dial and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from intermediate_server.client.connection import Connection
from intermediate_server.client.engine import ClientEngine, load_tls
from intermediate_server.client.hosts import look_up, plain_host, split_server
from intermediate_server.client.reasons import Shown
from intermediate_server.errors import ConfigError, ConnectError

SEND_QUEUE = 48 << 10
"""Bytes of DATAGRAMs that may wait: short, since a tunnel waits for room and does not drop."""


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
            _ = self.shown
        except ConnectError as error:
            raise ConfigError(f"server: {error}") from None
        load_tls(self.ca_file, self.cert_file, self.key_file, readable_keys=self.readable_keys, verify=self.verify)

    @property
    def shown(self) -> Shown:
        """What sentences about it name."""
        return Shown(self.ca_file, self.cert_file, plain_host(self.server_name or split_server(self.server)[0]))


async def addresses(relay: Relay) -> list[tuple[str, int]]:
    """Every address of the relay, families in turn, looked up anew. Raises ``ConnectError``."""
    return await look_up(*split_server(relay.server))


async def connect(engine: ClientEngine, relay: Relay, address: tuple[str, int]) -> Connection:
    """One try at one address of the relay. Raises ``ConnectError``."""
    return await engine.connect(
        address,
        ca_file=relay.ca_file,
        cert_file=relay.cert_file,
        key_file=relay.key_file,
        readable_keys=relay.readable_keys,
        server_name=relay.shown.server_name,
        verify=relay.verify,
        keep_alive=relay.keep_alive,
        idle_timeout=relay.idle_timeout,
        handshake_timeout=relay.handshake_timeout,
        send_queue_bytes=SEND_QUEUE,
    )
