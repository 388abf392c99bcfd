"""From settings to what the engine takes: certificates, keys, addresses and limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from intermediate_server.access.loading import read_authority
from intermediate_server.config import Settings, milliseconds
from intermediate_server.engine import EngineError, ListenConfig, ServerTls
from intermediate_server.errors import CertificateError
from intermediate_server.pki import Secrets, development, ensure_development, keys, load_server_material
from intermediate_server.pki.material import load_authorities


@dataclass(frozen=True, slots=True)
class Trust:
    """The server's certificate and the trust in clients', checked and ready for the engine."""

    tls: ServerTls = field(repr=False)
    ca_pem: bytes | None
    """What client certificates chain to."""
    not_after: datetime
    """When the server certificate expires, aware UTC."""
    origin: str
    """Where the certificate comes from, for the log."""
    new_ca: Path | None = None
    """The certificate of the development CA, if it was made just now."""


def load_trust(settings: Settings) -> Trust:
    """Read and check everything TLS needs, making the development certificate if none is set.

    Raises ``CertificateError``; changes nothing that runs.
    """
    ca_pem: bytes | None = None
    new_ca: Path | None = None
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
        origin = f"{made.cert} (development)"
        ca_pem, new_ca = made.ca_pem, made.ca_cert if made.first else None
        if settings.ca_cert is not None:
            ca_pem = load_authorities(settings.ca_cert)
    tls = _server_tls(settings, certificate_pem, key_pem, ca_pem, origin)
    return Trust(tls=tls, ca_pem=ca_pem, not_after=not_after, origin=origin, new_ca=new_ca)


def check_trust(settings: Settings) -> None:
    """Check what TLS needs as :func:`load_trust` does, and make nothing. Raises ``CertificateError``."""
    now, ca_pem = keys.utc_now(), read_authority(settings)
    if ca_pem is not None and settings.ca_cert is None:
        development.load_authority(settings.state_dir, now=now)
    if settings.cert is not None and settings.key is not None:
        material = load_server_material(settings.cert, settings.key, readable=settings.readable_keys)
        certificate_pem, key_pem, origin = material.certificate_pem, material.key_pem, str(settings.cert)
    else:
        # In place of the one that would be made.
        key = keys.new_key()
        certificate = keys.sign_itself("check", key, not_before=now, not_after=now + keys.BACKDATE)
        certificate_pem, key_pem, origin = keys.certificate_pem(certificate), keys.key_pem(key), "development"
    _server_tls(settings, certificate_pem, key_pem, ca_pem or certificate_pem, origin)


def _server_tls(
    settings: Settings, certificate_pem: bytes, key_pem: bytes, ca_pem: bytes | None, origin: str
) -> ServerTls:
    try:
        return ServerTls(
            certificate_pem=certificate_pem,
            key_pem=key_pem,
            client_ca_pem=None if settings.client_auth == "off" else ca_pem,
            client_auth=settings.client_auth,
        )
    except EngineError as error:
        raise CertificateError(f"{origin}: {error}") from error


def listen_config(
    settings: Settings,
    trust: Trust,
    secrets: Secrets,
    *,
    max_connections: int,
    known_addresses: Sequence[tuple[bytes, bytes]] = (),
    known_in_part: bool = False,
) -> ListenConfig:
    """The engine's configuration of the listener. Raises ``CertificateError`` and ``EngineError``."""
    return ListenConfig(
        bind=settings.listen_addresses(),
        tls=trust.tls,
        token_key=secrets.token_key,
        reset_key=secrets.reset_key,
        retry=not settings.disable_retry,
        retry_token_lifetime_ms=milliseconds(settings.retry_token_lifetime),
        idle_timeout_ms=milliseconds(settings.idle_timeout),
        handshake_timeout_ms=milliseconds(settings.handshake_timeout),
        max_connections=max_connections,
        max_half_open=settings.max_half_open,
        handshakes_per_source=settings.handshakes_per_source,
        handshake_burst_per_source=settings.handshake_burst_per_source,
        control_per_connection=settings.control_per_connection,
        cid_lifetime_ms=milliseconds(settings.cid_lifetime),
        initial_mtu=settings.initial_mtu,
        send_queue_bytes=settings.send_queue_bytes,
        receive_queue_bytes=settings.receive_queue_bytes,
        socket_buffer_bytes=settings.socket_buffer_bytes,
        inner_addresses=settings.inner_addresses,
        inner_pool_v4=str(settings.inner_pool_v4),
        inner_pool_v6=str(settings.inner_pool_v6),
        inner_per_agent=settings.inner_per_agent,
        lease_grace_ms=milliseconds(settings.lease_grace),
        known_addresses=known_addresses,
        known_in_part=known_in_part,
        icmp_source_v4=str(settings.icmp_source_v4),
        icmp_source_v6=str(settings.icmp_source_v6),
        icmp_per_second=settings.icmp_per_second,
        stall_timeout_ms=milliseconds(settings.stall_timeout),
    )
