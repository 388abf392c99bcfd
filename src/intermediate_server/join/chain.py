"""The certificates that a relay shows to those who join, and what a token pins of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509

from intermediate_server.config import Settings
from intermediate_server.config.values import split_place
from intermediate_server.errors import ConfigError
from intermediate_server.join.tokens import DEFAULT_SERVER_NAME
from intermediate_server.pki import files, keys
from intermediate_server.pki.development import CA_CERTIFICATE, ensure_development


class JoiningOff(ConfigError):
    """Nobody joins at this relay; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class JoinChain:
    """The relay's chain, as it is shown to those who join."""

    appended: bytes
    """PEM that follows the relay's own chain there; empty if that is enough."""
    pin: bytes
    """SHA-256 of the topmost certificate, 32 bytes."""
    ca_pem: bytes
    """The CAs by which clients verify the relay from then on; two during a rollover."""
    server_name: str
    """The name that clients find in its certificate."""


def join_chain(settings: Settings, certificate_pem: bytes) -> JoinChain:
    """The chain that a relay with this one (PEM, leaf first) shows to those who join.

    Raises ``JoiningOff`` and ``CertificateError``.
    """
    own = _own(settings.state_dir)
    _check_issues(settings, own)
    chain = keys.parse_certificates(certificate_pem, "of the server")
    top = chain[-1]
    issuer = next((item for item in own if keys.is_signed_by(top, item)), None)
    if len(chain) == 1 and issuer is None and not keys.is_signed_by(top, top):
        raise JoiningOff(
            f"{settings.cert or 'the server certificate'} holds no chain, so there is nothing that a token could pin; "
            "append the certificates of its issuers, or leave cert and key out"
        )
    if issuer is not None:
        # Its CA is ours: all of ours are trusted, so that one may follow the other.
        shown, trusted = [issuer], own
    else:
        shown, trusted = [], [top]
    return JoinChain(
        appended=keys.certificate_pem(*shown),
        pin=(shown or chain)[-1].fingerprint(keys.SHA256),
        ca_pem=keys.certificate_pem(*trusted),
        server_name=_name_of(chain[0], settings),
    )


def chain_of(settings: Settings) -> JoinChain:
    """The chain that the relay of these settings shows, by its files.

    The development certificate is made if it is missing. Raises ``JoiningOff`` and ``CertificateError``.
    """
    if settings.cert is not None:
        return join_chain(settings, files.read_file(settings.cert, "certificate file"))
    made = ensure_development(settings.state_dir, external_ip=settings.external_ip)
    return join_chain(settings, made.certificate_pem)


def _own(state_dir: Path) -> list[x509.Certificate]:
    path = state_dir / CA_CERTIFICATE
    return keys.load_certificates(path) if path.exists() else []


def _check_issues(settings: Settings, own: Sequence[x509.Certificate]) -> None:
    if not settings.joining:
        raise JoiningOff("joining is off; set joining = true")
    if settings.client_auth == "off":
        raise JoiningOff("client-auth is off, so certificates are not asked for; set client-auth = required")
    if settings.join_signer or settings.ca_cert is None:
        return
    trusted = keys.load_certificates(settings.ca_cert)
    if not any(item in trusted for item in own):
        raise JoiningOff(
            f"the certificates of {settings.ca_cert} are issued elsewhere; name the command that has them signed in "
            "join-signer, or give clients certificates of that CA"
        )


def _name_of(leaf: x509.Certificate, settings: Settings) -> str:
    """The name by which clients verify the relay: that of the field, else one at which it is reached, else any."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return DEFAULT_SERVER_NAME
    found = [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    found += [str(ip_address(str(item))) for item in names.get_values_for_type(x509.IPAddress)]
    if DEFAULT_SERVER_NAME in found:
        return DEFAULT_SERVER_NAME
    for host in (split_place(place)[0] for place in settings.public_address):
        if host in found or f"*.{host.partition('.')[2]}" in found:
            return host
    return next((name for name in found if "*" not in name), DEFAULT_SERVER_NAME)
