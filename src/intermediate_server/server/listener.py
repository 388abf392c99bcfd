"""The listener: settings become certificates, keys, addresses and limits for the engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from intermediate_server import signaling
from intermediate_server.access.loading import read_authority
from intermediate_server.config import Settings, milliseconds
from intermediate_server.config.host import interface_addresses
from intermediate_server.engine import EngineError, ListenConfig, ServerTls
from intermediate_server.errors import CertificateError
from intermediate_server.join.chain import JoinChain, JoiningOff, join_chain
from intermediate_server.pki import Secrets, development, ensure_development, keys, load_server_material
from intermediate_server.pki.material import load_authorities
from intermediate_server.types import Address


@dataclass(frozen=True, slots=True)
class Trust:
    """The server's certificate and the trust in clients', checked and ready for the engine."""

    tls: ServerTls = field(repr=False)
    ca_pem: bytes | None
    """The CA of client certificates, PEM."""
    not_after: datetime
    """The end of the server certificate, aware UTC."""
    origin: str
    """The source of the certificate, for the log."""
    new_ca: Path | None = None
    """The certificate of the development CA, if it was made just now."""
    renew_at: datetime | None = None
    """When the server certificate is to be renewed, aware UTC; None for one that was not made here."""
    join: JoinChain | None = None
    """What is shown to those who join; None where nobody can."""
    join_off: str = ""
    """Why nobody can."""


def load_trust(settings: Settings) -> Trust:
    """Read and check the files of TLS, making the development certificate if none is set.

    Raises ``CertificateError``; changes nothing in a running server.
    """
    ca_pem: bytes | None = None
    new_ca: Path | None = None
    renew_at: datetime | None = None
    if settings.cert is not None and settings.key is not None:
        material = load_server_material(settings.cert, settings.key, settings.ca_cert, readable=settings.readable_keys)
        certificate_pem, key_pem, not_after = material.certificate_pem, material.key_pem, material.not_after
        origin = str(settings.cert)
        ca_pem = material.client_ca_pem
        if ca_pem is None and settings.client_auth != "off":
            made = ensure_development(settings.state_dir, external_ip=settings.external_ip)
            ca_pem, new_ca = made.ca_pem, made.ca_cert if made.first else None
    else:
        made = ensure_development(settings.state_dir, external_ip=settings.external_ip)
        certificate_pem, key_pem, not_after = made.certificate_pem, made.key_pem, made.not_after
        renew_at = made.renew_at
        origin = f"{made.cert} (development)"
        ca_pem, new_ca = made.ca_pem, made.ca_cert if made.first else None
        if settings.ca_cert is not None:
            ca_pem = load_authorities(settings.ca_cert)
    join, join_off = None, ""
    try:
        join = join_chain(settings, certificate_pem)
    except JoiningOff as error:
        join_off = str(error)
    tls = _server_tls(settings, certificate_pem, key_pem, ca_pem, origin, None if join is None else join.appended)
    return Trust(
        tls=tls,
        ca_pem=ca_pem,
        not_after=not_after,
        origin=origin,
        new_ca=new_ca,
        renew_at=renew_at,
        join=join,
        join_off=join_off,
    )


def check_trust(settings: Settings) -> None:
    """Check the files of TLS as :func:`load_trust` does, and make nothing. Raises ``CertificateError``."""
    now, ca_pem = keys.utc_now(), read_authority(settings)
    if ca_pem is not None and settings.ca_cert is None:
        development.load_authority(settings.state_dir, now=now)
    if settings.cert is not None and settings.key is not None:
        material = load_server_material(settings.cert, settings.key, readable=settings.readable_keys)
        certificate_pem, key_pem, origin = material.certificate_pem, material.key_pem, str(settings.cert)
    else:
        # Stands for the one that a start would make.
        key = keys.new_key()
        certificate = keys.sign_itself("check", key, not_before=now, not_after=now + keys.BACKDATE)
        certificate_pem, key_pem, origin = keys.certificate_pem(certificate), keys.key_pem(key), "development"
    _server_tls(settings, certificate_pem, key_pem, ca_pem or certificate_pem, origin)


def _server_tls(
    settings: Settings,
    certificate_pem: bytes,
    key_pem: bytes,
    ca_pem: bytes | None,
    origin: str,
    join_chain_pem: bytes | None = None,
) -> ServerTls:
    try:
        return ServerTls(
            certificate_pem=certificate_pem,
            key_pem=key_pem,
            client_ca_pem=None if settings.client_auth == "off" else ca_pem,
            client_auth=settings.client_auth,
            join_chain_pem=join_chain_pem,
        )
    except EngineError as error:
        raise CertificateError(f"{origin}: {error}") from error


def listen_config(
    settings: Settings,
    trust: Trust,
    secrets: Secrets,
    *,
    max_connections: int,
    sockets: Sequence[int] = (),
    known_addresses: Sequence[tuple[bytes, bytes]] = (),
    known_in_part: bool = False,
) -> ListenConfig:
    """The engine's configuration of the listener. Raises ``CertificateError`` and ``EngineError``.

    ``sockets``, where there are some, take the place of those that the engine would bind.

    A setting of the engine has the same name in both, with ``_ms`` behind it there for a duration.
    """
    given: dict[str, Any] = {
        "bind": [] if sockets else settings.listen_addresses(),
        "sockets": sockets,
        "tls": trust.tls,
        "token_key": secrets.token_key,
        "reset_key": secrets.reset_key,
        "retry": not settings.disable_retry,
        "translate": settings.inner_addresses == "auto",
        "max_connections": max_connections,
        "known_addresses": known_addresses,
        "known_in_part": known_in_part,
    }
    for name in ListenConfig.names():
        if name not in given:
            given[name] = _for_engine(name, settings)
    return ListenConfig(**given)


def signaling_settings(settings: Settings, bound: Iterable[Address]) -> signaling.Settings:
    """What introductions go by; ``bound`` is where the relay listens."""
    own: set[Address] = set()
    for address in bound:
        hosts = interface_addresses() if address.host.is_unspecified else (address.host,)
        own.update(Address(host, address.port) for host in hosts)
        if settings.external_ip is not None:
            own.add(Address(settings.external_ip, address.port))
    return signaling.Settings(
        direct=settings.direct,
        private_candidates=settings.private_candidates,
        relay_addresses=frozenset(own),
        limits=signaling.Limits(sessions=settings.max_signaling_sessions),
    )


def _for_engine(name: str, settings: Settings) -> object:
    """One setting for the engine: durations in milliseconds, addresses and networks as text."""
    if name.endswith("_ms"):
        return milliseconds(getattr(settings, name.removesuffix("_ms")))
    value: object = getattr(settings, name)
    return value if isinstance(value, bool | int | str) else str(value)
