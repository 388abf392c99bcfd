"""The options of a client connection, each declared once, and the command made of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from intermediate_server.client.hosts import plain_host, split_server
from intermediate_server.client.profile import Profile
from intermediate_server.client.reasons import Shown
from intermediate_server.engine import ClientTls, ConnectConfig, EngineError
from intermediate_server.errors import CertificateError, ConnectError
from intermediate_server.pki.material import load_client_material

P = ParamSpec("P")
Made = TypeVar("Made")
R = TypeVar("R")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """The options of a client connection. Times are in seconds."""

    server: str | tuple[str, int] | None = None
    """``host:port``, without a port 4433, or a pair; None with a ``profile``."""
    _: KW_ONLY
    others: tuple[str, ...] = ()
    """Further addresses of the same relay."""
    profile: Path | str | None = None
    """A profile, in place of the addresses, the name, the CA, the certificate and the key. It is read at each use."""
    pin: bytes | None = None
    """SHA-256 of the topmost certificate that the relay shows, in place of a CA: as join tokens have it."""
    ca_file: Path | str | None = None
    cert_file: Path | str | None = None
    key_file: Path | str | None = None
    readable_keys: bool = False
    """Whether a private key that everyone may read is accepted."""
    server_name: str | None = None
    """The name that the relay's certificate must carry; by default the host."""
    verify: bool = True
    """``False`` accepts any server: for tests and migration."""
    bind: tuple[str, int] | None = None
    """The local address, by default any."""
    alpn: str = "ztna-v1"
    idle_timeout: float = 30.0
    """Silence after which the connection is closed."""
    handshake_timeout: float = 10.0
    keep_alive: float = 10.0
    """Silence before a PING; 0 sends none."""
    max_udp_payload: int = 1_472
    """The largest UDP payload taken, 1200 to 65527 bytes."""
    send_queue_bytes: int = 1_048_576
    """Bytes of DATAGRAMs that may wait to be sent."""

    def places(self) -> list[tuple[str, int]]:
        """Host and port of each address of the relay, at least one. Raises ``ConnectError``."""
        if self.profile is not None:
            return self._of_profile().places()
        if self.server is None:
            raise ConnectError("no relay is named: give its server, or a profile")
        first = split_server(self.server) if isinstance(self.server, str) else self.server
        return [first, *map(split_server, self.others)]

    @property
    def identity_file(self) -> Path | str | None:
        """The file whose first certificate is ours."""
        return self.cert_file if self.profile is None else self.profile

    @property
    def shown(self) -> Shown:
        """The names for sentences about the connection. Raises ``ConnectError``."""
        given = self.server_name if self.profile is None else self._of_profile().server_name
        name = given or self.places()[0][0]
        return Shown(self.ca_file, self.cert_file, plain_host(name), profile=self.profile, pinned=self.pin is not None)

    def _of_profile(self) -> Profile:
        try:
            return self._load()
        except CertificateError as error:
            raise ConnectError(str(error)) from error

    def _load(self) -> Profile:
        return Profile.load(Path(str(self.profile)), readable=self.readable_keys)

    def tls(self) -> ClientTls:
        """Read and check the files. Raises ``CertificateError``."""
        if self.profile is not None:
            material = self._load().material()
        else:
            material = load_client_material(
                ca_cert=self.ca_file, cert=self.cert_file, key=self.key_file, readable=self.readable_keys
            )
        try:
            return ClientTls(
                ca_pem=material.ca_pem,
                certificate_pem=None if material.pair is None else material.pair.certificate_pem,
                key_pem=None if material.pair is None else material.pair.key_pem,
                verify=self.verify,
                pin=self.pin,
            )
        except EngineError as error:
            raise CertificateError(str(error)) from error

    def check_dates(self, now: datetime) -> None:
        """Raises ``ConnectError`` when the certificate of the profile has expired: it only renews itself."""
        if self.profile is not None and (end := self._of_profile().leaf.not_valid_after_utc) <= now:
            raise ConnectError(
                f"the certificate of {self.profile} expired at {end:%Y-%m-%d %H:%M} UTC; a running agent or connector"
                " renews it first"
            )

    def config(self, remote: tuple[str, int], tls: ClientTls, shown: Shown) -> ConnectConfig:
        """The engine's options of a connection to one address."""
        return ConnectConfig(
            remote=remote,
            server_name=shown.server_name,
            tls=tls,
            bind=self.bind,
            alpn=[self.alpn.encode()],
            idle_timeout_ms=round(self.idle_timeout * 1000),
            handshake_timeout_ms=round(self.handshake_timeout * 1000),
            keep_alive_ms=round(self.keep_alive * 1000),
            max_udp_payload=self.max_udp_payload,
            send_queue_bytes=self.send_queue_bytes,
        )


def by_keyword(make: Callable[P, Made]) -> Callable[[Callable[[S, Made], R]], Callable[Concatenate[S, P], R]]:
    """Lets a method that takes options be called with their fields, so that nothing repeats the fields."""

    def decorate(method: Callable[[S, Made], R]) -> Callable[Concatenate[S, P], R]:
        def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            return method(self, make(*args, **kwargs))

        functools.update_wrapper(call, method)
        return call

    return decorate
