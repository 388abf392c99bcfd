"""Reading and checking the files a server is told to use, before anything is let go for them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ed25519

from intermediate_server.pki import files, keys

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerMaterial:
    """What a listener's TLS is made of, each part read once and checked against the others."""

    certificate_pem: bytes
    """The server's chain, leaf first."""
    key_pem: bytes = field(repr=False)
    """The leaf's private key; keep it no longer than it takes to hand it to the engine."""
    client_ca_pem: bytes | None
    """What client certificates must chain to."""
    fingerprint: str
    """SHA-256 of the leaf, lower-case hex."""
    not_after: datetime
    """When the leaf expires, aware UTC."""


def load_server_material(
    cert: Path, key: Path, ca_cert: Path | None = None, *, now: datetime | None = None
) -> ServerMaterial:
    """Read certificate, key and CA; raises ``CertificateError`` for a file that is missing, bad or of another pair.

    What still works for some clients is only warned of: an expired certificate (those that do not verify), an
    Ed25519 one (those that offer the scheme, which clients in the field do not).
    """
    chain_pem = files.read_file(cert, "certificate file")
    leaf = keys.parse_certificates(chain_pem, cert)[0]
    key_pem = files.read_private_file(key, "private key file")
    private_key = keys.parse_key(key_pem, key)
    keys.check_pair(leaf, private_key, f"{cert} and {key}")
    ca_pem = None
    if ca_cert is not None:
        ca_pem = files.read_file(ca_cert, "CA certificate file")
        keys.parse_certificates(ca_pem, ca_cert)
    _warn(leaf, cert, now or keys.utc_now())
    return ServerMaterial(
        certificate_pem=chain_pem,
        key_pem=key_pem,
        client_ca_pem=ca_pem,
        fingerprint=leaf.fingerprint(keys.SHA256).hex(),
        not_after=leaf.not_valid_after_utc,
    )


def _warn(leaf: x509.Certificate, path: Path, now: datetime) -> None:
    if leaf.not_valid_after_utc <= now:
        _log.warning("certificate %s expired at %s; renew it", path, leaf.not_valid_after_utc.isoformat())
    elif leaf.not_valid_before_utc > now:
        _log.warning("certificate %s is not valid before %s", path, leaf.not_valid_before_utc.isoformat())
    try:
        key = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return
    if isinstance(key, ed25519.Ed25519PublicKey):
        _log.warning("certificate %s is Ed25519, which many clients refuse; use ECDSA P-256", path)
