"""Loading of the files for TLS: a server or a client reads and checks them before it replaces anything.

The engine gets a copy written from the parsed content, so that it cannot read anything else.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ed25519

from intermediate_server.errors import CertificateError
from intermediate_server.pki import keys
from intermediate_server.pki.inspect import is_authority

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate chain and the private key of its leaf, which belong together."""

    certificate_pem: bytes
    """The chain, leaf first."""
    key_pem: bytes = field(repr=False)
    """The leaf's private key; drop it once the engine has it."""
    leaf: x509.Certificate


@dataclass(frozen=True, slots=True)
class ServerMaterial:
    """The certificate, key and CA of a listener, each read once and checked against the others."""

    certificate_pem: bytes
    """The server's chain, leaf first."""
    key_pem: bytes = field(repr=False)
    """The leaf's private key; drop it once the engine has it."""
    client_ca_pem: bytes | None
    """The CA of client certificates, PEM."""
    fingerprint: str
    """SHA-256 of the leaf, lower-case hex."""
    not_after: datetime
    """The end of the leaf, aware UTC."""


@dataclass(frozen=True, slots=True)
class ClientMaterial:
    """The CA, certificate and key of a client."""

    ca_pem: bytes | None
    """The CA of the server's certificate, PEM."""
    pair: Pair | None
    """The client's certificate and key; None for an anonymous client."""


def load_pair(cert: Path | str, key: Path | str, *, readable: bool = False) -> Pair:
    """A certificate chain and its key; ``readable`` as for ``read_private_file``. Raises ``CertificateError``."""
    chain = keys.load_certificates(cert)
    private_key = keys.load_key(key, readable=readable)
    keys.check_pair(chain[0], private_key, f"{cert} and {key}")
    return Pair(keys.certificate_pem(*chain), keys.key_pem(private_key), chain[0])


def load_authorities(path: Path | str) -> bytes:
    """The CAs of a file as PEM, every one that it holds. Raises ``CertificateError``."""
    return keys.certificate_pem(*keys.load_certificates(path))


def load_server_material(
    cert: Path | str,
    key: Path | str,
    ca_cert: Path | str | None = None,
    *,
    readable: bool = False,
    now: datetime | None = None,
) -> ServerMaterial:
    """Read certificate, key and CA; raises ``CertificateError`` for a file that is missing, bad or of another pair.

    A certificate that works for some clients is a warning: an expired one (for clients that do not verify), an Ed25519
    one (for clients that offer the scheme; the ones in the field do not), a CA's (for clients that pin it).
    """
    pair = load_pair(cert, key, readable=readable)
    _warn(pair.leaf, cert, now or keys.utc_now())
    return ServerMaterial(
        certificate_pem=pair.certificate_pem,
        key_pem=pair.key_pem,
        client_ca_pem=None if ca_cert is None else load_authorities(ca_cert),
        fingerprint=pair.leaf.fingerprint(keys.SHA256).hex(),
        not_after=pair.leaf.not_valid_after_utc,
    )


def load_client_material(
    *, ca_cert: Path | str | None, cert: Path | str | None, key: Path | str | None, readable: bool = False
) -> ClientMaterial:
    """Read the files of a client. Raises ``CertificateError`` for a file that is missing, bad or of another pair."""
    if (cert is None) != (key is None):
        raise CertificateError("a certificate needs its private key, and a key its certificate; give both or neither")
    return ClientMaterial(
        ca_pem=None if ca_cert is None else load_authorities(ca_cert),
        pair=None if cert is None or key is None else load_pair(cert, key, readable=readable),
    )


def _warn(leaf: x509.Certificate, path: Path | str, now: datetime) -> None:
    if leaf.not_valid_after_utc <= now:
        _log.warning("certificate %s expired at %s; renew it", path, leaf.not_valid_after_utc.isoformat())
    elif leaf.not_valid_before_utc > now:
        _log.warning("certificate %s is not valid before %s", path, leaf.not_valid_before_utc.isoformat())
    if is_authority(leaf):
        _log.warning(
            "certificate %s says that it is a CA (CA:TRUE), so only clients that have it as their --ca-cert take it; "
            "make one with: openssl req -x509 -addext basicConstraints=critical,CA:FALSE",
            path,
        )
    try:
        key = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return
    if isinstance(key, ed25519.Ed25519PublicKey):
        _log.warning("certificate %s is Ed25519, which many clients refuse; use ECDSA P-256", path)
