"""The certificates and keys that a server makes on its first start, kept in the state directory.

``ca.pem``/``ca.key`` the development CA, ``server.pem``/``server.key`` the server, ``retry.key`` and ``reset.key`` for
Retry tokens and stateless resets. They survive restarts: handshakes in flight and peers that trust the CA go on. ``pki
issue`` signs with the same CA.

While one CA takes over from another (``rollover``), ``ca.pem`` holds both; ``ca.key`` says which of them signs, and
``ca.next.key`` or ``ca.old.key`` is the key of the other.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from cryptography import x509

from intermediate_server.config.host import interface_addresses
from intermediate_server.errors import CertificateError
from intermediate_server.pki import crl, files, keys

CA_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=825)
RENEW_BEFORE = timedelta(days=30)
SECRET_BYTES = 64

CA_CERTIFICATE, CA_KEY = "ca.pem", "ca.key"
CA_NEXT_KEY, CA_OLD_KEY = "ca.next.key", "ca.old.key"
SERVER_CERTIFICATE, SERVER_KEY = "server.pem", "server.key"
RETRY_KEY, RESET_KEY = "retry.key", "reset.key"

SERVER_NAMES = ("ztna-server", "localhost")
"""Names that clients in the field verify; agents check the first one at every relay."""

_MAX_ADDRESSES = 64


@dataclass(frozen=True, slots=True)
class DevelopmentFiles:
    """The development certificates: their paths, and their bytes as read under the directory's lock."""

    ca_cert: Path
    cert: Path
    key: Path
    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    not_after: datetime
    """The end of the server certificate, aware UTC."""
    renew_at: datetime
    """When another one is to be made, aware UTC."""
    created: bool
    """Whether this call made or renewed the server certificate."""
    first: bool = False
    """Whether this call made the CA."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """The server's own secrets, 64 bytes each, the same after a restart."""

    token_key: bytes = field(repr=False)
    """Encrypts Retry tokens (RFC 9000 section 8.1.4)."""
    reset_key: bytes = field(repr=False)
    """Derives stateless reset tokens (RFC 9000 section 10.3.2)."""


def ensure_development(
    state_dir: Path | str,
    *,
    external_ip: IPv4Address | IPv6Address | None = None,
    names: Sequence[str] | None = None,
    now: datetime | None = None,
) -> DevelopmentFiles:
    """The development CA and server certificate, made if missing. Raises ``CertificateError``.

    The server certificate is renewed, with its key, 30 days before it expires and when it lacks ``external_ip``.
    ``names`` are further DNS names and addresses for it; None takes this host's. Processes that start at once end up
    with the same files.
    """
    state_dir, now = Path(state_dir), now or keys.utc_now()
    with files.locked(state_dir):
        first = not (state_dir / CA_CERTIFICATE).exists()
        ensure_authority(state_dir, now=now)
        authority, authority_key = serving_authority(state_dir, now=now)
        key_path, cert_path = state_dir / SERVER_KEY, state_dir / SERVER_CERTIFICATE
        key = _ensure_key(key_path)
        wanted = _subject_names(external_ip, host_names_and_addresses() if names is None else names)
        certificate = _usable(cert_path, key, authority, external_ip, now)
        created = certificate is None
        if certificate is None:
            certificate = keys.sign(
                subject=keys.common_name(SERVER_NAMES[0]),
                public_key=key.public_key(),
                authority=authority,
                authority_key=authority_key,
                names=wanted,
                usage=keys.SERVER_AUTH,
                not_before=now - keys.BACKDATE,
                not_after=now + SERVER_LIFETIME,
            )
            files.write_file(cert_path, keys.certificate_pem(certificate), private=False)
        return DevelopmentFiles(
            ca_cert=state_dir / CA_CERTIFICATE,
            cert=cert_path,
            key=key_path,
            ca_pem=bundle(state_dir),
            certificate_pem=keys.certificate_pem(certificate),
            key_pem=keys.key_pem(key),
            not_after=certificate.not_valid_after_utc,
            renew_at=_renew_at(certificate, authority),
            created=created,
            first=first,
        )


def ensure_authority(state_dir: Path, *, now: datetime) -> tuple[x509.Certificate, keys.PrivateKey]:
    """The development CA, made if missing; the caller holds the directory's lock. Raises ``CertificateError``.

    An unusable CA is never replaced: every certificate it signed, and all trust in it, would be lost. After it was
    moved away a new one is made, with a new revocation list.
    """
    cert_path, key_path = state_dir / CA_CERTIFICATE, state_dir / CA_KEY
    if cert_path.exists() and not key_path.exists():
        raise CertificateError(f"CA key file not found: {key_path}; restore it, or move {cert_path} away for a new CA")
    key = _ensure_key(key_path)
    if not cert_path.exists():
        files.write_file(cert_path, keys.certificate_pem(new_authority(key, now=now)), private=False)
    authority = load_authority(state_dir, now=now)
    crl.follow(state_dir, signers(state_dir), now=now)
    return authority


def new_authority(key: keys.PrivateKey, *, now: datetime) -> x509.Certificate:
    """A CA's certificate, with a name of its own. Raises ``CertificateError``."""
    name = f"intermediate-server development CA {secrets.token_hex(4)}"
    return keys.sign_itself(name, key, not_before=now - keys.BACKDATE, not_after=now + CA_LIFETIME)


def bundle(state_dir: Path) -> bytes:
    """Every CA of a state directory, PEM: two during a rollover, the signing one first. Raises ``CertificateError``."""
    return keys.certificate_pem(*keys.load_certificates(state_dir / CA_CERTIFICATE))


def load_authority(state_dir: Path, *, now: datetime) -> tuple[x509.Certificate, keys.PrivateKey]:
    """The CA certificate and key that sign, checked. Raises ``CertificateError``."""
    cert_path, key_path = state_dir / CA_CERTIFICATE, state_dir / CA_KEY
    certificates = keys.load_certificates(cert_path)
    key = keys.load_key(key_path)
    certificate = next((item for item in certificates if keys.belongs(item, key)), certificates[0])
    keys.check_pair(certificate, key, f"{cert_path} and {key_path}")
    if certificate.not_valid_after_utc <= now:
        raise CertificateError(
            f"CA {cert_path} expired at {certificate.not_valid_after_utc.isoformat()}; move it and {key_path} away "
            "for a new CA, and issue all certificates again"
        )
    return certificate, key


def signers(state_dir: Path) -> list[tuple[x509.Certificate, keys.PrivateKey]]:
    """Every CA of ``ca.pem`` whose key is here, the signing one first. Raises ``CertificateError``."""
    path = state_dir / CA_CERTIFICATE
    certificates = keys.load_certificates(path) if path.exists() else []
    found: list[tuple[x509.Certificate, keys.PrivateKey]] = []
    for name in (CA_KEY, CA_NEXT_KEY, CA_OLD_KEY):
        if (state_dir / name).exists():
            key = keys.load_key(state_dir / name)
            mine = next((item for item in certificates if keys.belongs(item, key)), None)
            if mine is not None and all(mine != item for item, _ in found):
                found.append((mine, key))
    return found


def serving_authority(state_dir: Path, *, now: datetime) -> tuple[x509.Certificate, keys.PrivateKey]:
    """The CA that signs the server's own certificate. Raises ``CertificateError``.

    It is the earlier one to the end of a rollover, since clients that have not renewed know no other.
    """
    old = state_dir / CA_OLD_KEY
    if old.exists():
        key = keys.load_key(old)
        for certificate in keys.load_certificates(state_dir / CA_CERTIFICATE):
            if keys.belongs(certificate, key):
                return certificate, key
    return load_authority(state_dir, now=now)


def ensure_secrets(state_dir: Path) -> Secrets:
    """The keys of Retry tokens and stateless resets, made if missing. Raises ``CertificateError``."""
    with files.locked(state_dir):
        return Secrets(
            token_key=_ensure_secret(state_dir / RETRY_KEY),
            reset_key=_ensure_secret(state_dir / RESET_KEY),
        )


def temporary_secrets() -> Secrets:
    """Keys for the life of this process, without a state directory."""
    return Secrets(token_key=secrets.token_bytes(SECRET_BYTES), reset_key=secrets.token_bytes(SECRET_BYTES))


def host_names_and_addresses() -> tuple[str, ...]:
    """This host's name and the addresses of its interfaces, without DNS, which could delay a start."""
    addresses = dict.fromkeys([*interface_addresses(), *route_addresses()])
    usable = [str(item) for item in addresses if not (item.is_link_local or item.is_unspecified or item.is_multicast)]
    return (socket.gethostname(), *usable[:_MAX_ADDRESSES])


def _ensure_key(path: Path) -> keys.PrivateKey:
    if not path.exists():
        files.write_file(path, keys.key_pem(keys.new_key()), private=True)
    return keys.load_key(path)


def _ensure_secret(path: Path) -> bytes:
    if not path.exists():
        files.write_file(path, secrets.token_bytes(SECRET_BYTES), private=True)
    secret = files.read_private_file(path, "key file")
    if len(secret) != SECRET_BYTES:
        raise CertificateError(f"key file {path} is not {SECRET_BYTES} bytes long; remove it, a new one is made")
    return secret


def _usable(
    path: Path,
    key: keys.PrivateKey,
    authority: x509.Certificate,
    external_ip: IPv4Address | IPv6Address | None,
    now: datetime,
) -> x509.Certificate | None:
    """The server certificate, if it is usable; a damaged one is made anew, since nothing depends on it."""
    if not path.exists():
        return None
    try:
        certificate = keys.load_certificates(path)[0]
        keys.check_pair(certificate, key, str(path))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (CertificateError, ValueError, x509.ExtensionNotFound):
        return None
    renew_at = _renew_at(certificate, authority)
    known = external_ip is None or external_ip in names.get_values_for_type(x509.IPAddress)
    return certificate if known and now < renew_at and keys.is_signed_by(certificate, authority) else None


def _renew_at(certificate: x509.Certificate, authority: x509.Certificate) -> datetime:
    return min(certificate.not_valid_after_utc - RENEW_BEFORE, authority.not_valid_after_utc - timedelta(days=1))


def _subject_names(external_ip: IPv4Address | IPv6Address | None, more: Sequence[str]) -> list[x509.GeneralName]:
    names: dict[x509.GeneralName, None] = {x509.DNSName(name): None for name in SERVER_NAMES}
    for address in (ip_address("127.0.0.1"), ip_address("::1"), external_ip):
        if address is not None:
            names[x509.IPAddress(address)] = None
    for text in more:
        try:
            names[x509.IPAddress(ip_address(text))] = None
        except ValueError:
            # A host's name may not fit into a certificate, which is made without it then.
            with contextlib.suppress(ValueError):
                names[x509.DNSName(text.lower())] = None
    return list(names)


def route_addresses() -> Iterator[IPv4Address | IPv6Address]:
    """The local addresses of packets to the internet; a connected UDP socket sends none."""
    for family, remote in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError, ValueError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((remote, 9))
            yield ip_address(probe.getsockname()[0])
