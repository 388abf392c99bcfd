"""The relay that an agent or connector dials, with the options for it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from intermediate_server.client.connection import Connection
from intermediate_server.client.engine import ClientEngine
from intermediate_server.client.hosts import look_up_all
from intermediate_server.client.options import ConnectOptions
from intermediate_server.client.profile import NoProfile, Profile
from intermediate_server.config.clients import RelaySettings
from intermediate_server.config.fields import POOL_V4, POOL_V6
from intermediate_server.engine import ClientTls
from intermediate_server.errors import CertificateError, ConfigError, ConnectError

SEND_QUEUE = 48 << 10
"""Bytes of DATAGRAMs that may wait: short, since a tunnel waits for room and does not drop."""

_SETTINGS = {"ca_file": "ca_cert", "cert_file": "cert", "key_file": "key"}
"""Settings whose option has another name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay(ConnectOptions):
    """A relay, the identity to prove to it, and the times that keep an agent or connector connected."""

    server: str
    """The address; with a profile the first of its addresses, for the log."""
    keep_alive: float = 1.5
    """Silence before a PING: how soon a relay that was killed and came back is noticed."""
    idle_timeout: float = 15.0
    send_queue_bytes: int = SEND_QUEUE
    inner_pool_v4: IPv4Network = POOL_V4
    """The relay's pools of inner addresses."""
    inner_pool_v6: IPv6Network = POOL_V6

    @classmethod
    def of(cls, settings: RelaySettings, *, default: Path | None = None) -> Relay:
        """The relay of the settings, or of the ``default`` profile where they name none.

        A setting and its option have the same name. Raises ``ProfileError``, and ``ConfigError`` without either.
        """
        names = {field.name: _SETTINGS.get(field.name, field.name) for field in fields(cls)}
        given: dict[str, Any] = {
            option: getattr(settings, name) for option, name in names.items() if name in type(settings).model_fields
        }
        if settings.server is None:
            given["profile"] = profile = settings.profile or default
            if profile is None:
                raise ConfigError("server is not set: name the relay with --server HOST:PORT, or give --profile FILE")
            try:
                given["server"] = Profile.load(profile, readable=settings.readable_keys).servers[0]
            except NoProfile as error:
                raise NoProfile(f"no relay is named with --server, and {error}") from None
        return cls(**given, verify=not settings.no_verify_peer)

    @property
    def pools(self) -> tuple[IPv4Network, IPv6Network]:
        """The pools of agents' inner addresses."""
        return self.inner_pool_v4, self.inner_pool_v6

    def check(self) -> None:
        """Read every file that is named. Raises ``ConfigError`` and ``CertificateError``."""
        try:
            _ = self.shown
        except ConnectError as error:
            raise ConfigError(f"server: {error}") from None
        self.tls()


class Opener:
    """Opens connections with the present files of a relay, or the last that fitted: a pair may be half-replaced."""

    def __init__(self, engine: ClientEngine, relay: Relay) -> None:
        self._engine = engine
        self._relay = relay
        self._tls: ClientTls | None = None

    async def __call__(self, address: tuple[str, int]) -> Connection:
        """Connect to one address. Raises ``ConnectError``."""
        try:
            self._tls = self._relay.tls()
        except CertificateError as error:
            if self._tls is None:
                raise ConnectError(f"cannot use the certificates: {error}") from error
        return await self._engine.open(self._relay, at=address, tls=self._tls)


async def addresses(relay: Relay) -> list[tuple[str, int]]:
    """Every address of the relay, families in turn, looked up anew. Raises ``ConnectError``."""
    return await look_up_all(relay.places())
