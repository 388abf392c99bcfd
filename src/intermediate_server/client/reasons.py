"""Explanations of failures with their remedies: the one place where words of TLS and QUIC become sentences."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.client.connection import Closed
from intermediate_server.engine import Event
from intermediate_server.errors import CertificateError
from intermediate_server.pki import identity_of
from intermediate_server.pki.keys import load_certificates
from intermediate_server.policy.certificate import granting_name
from intermediate_server.types import Identity, Role

CONNECTION_REFUSED = 2
"""CONNECTION_REFUSED: the server takes no connections now (RFC 9000 section 20.1)."""
_CRYPTO = 0x100
"""Transport errors from here on are TLS alerts (RFC 9001 section 4.8)."""
_EXPIRED, _ALERT_EXPIRED = 5, 45
_ABOUT_OUR_CERTIFICATE = (4, _EXPIRED, 7)
"""Application codes with which the relay refuses a certificate: revoked, expired, of an unknown CA."""
_OTHER_PIN = (
    "this is not the relay that the join token is for: its CA is another one, so nothing of the token was sent; make a"
    " new token there (intermediate-server token create)"
)


@dataclass(frozen=True, slots=True)
class Shown:
    """Relay and files of a connection, for sentences that name them."""

    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    server_name: str = ""
    """The name that the relay's certificate must carry."""
    _: KW_ONLY
    profile: str | Path | None = None
    pinned: bool = False
    """Whether a join token says which CA is the relay's."""
    joining: bool = False
    """Whether it is a connection for one request of ``ztna-join/1``."""

    @property
    def ours(self) -> str:
        """Our certificate."""
        if self.profile is not None:
            return f"our certificate in the profile {self.profile}"
        return "our certificate" if self.cert_file is None else f"our certificate {self.cert_file} (--cert)"

    @property
    def authorities(self) -> str:
        """The CAs that we trust."""
        return f"the profile {self.profile}" if self.profile is not None else f"{self.ca_file} (--ca-cert)"


def of_failure(failure: Event.ConnectFailed, shown: Shown) -> str:
    """The reason for which there is no connection."""
    now = f"this host's clock says {datetime.now(UTC):%Y-%m-%d}"
    match failure.cause:
        case "peer":
            return _of_close("peer", failure.code, failure.reason, shown)
        case "unknown_issuer":
            if shown.pinned:
                return _OTHER_PIN
            return f"the relay's certificate is not signed by a CA in {shown.authorities}"
        case "wrong_name":
            names = ", ".join(failure.names)
            dial = (
                f"it is for {names}: dial one of these" if names else "it names no host: give the relay one that does"
            )
            return f"the relay's certificate is not for {shown.server_name}; {dial} or set --server-name"
        case "expired":
            return f"the relay's certificate has expired: renew it there, or set the clock; {now}"
        case "not_yet_valid":
            return f"the relay's certificate begins later: set the clock; {now}"
        case "wrong_purpose":
            return "the relay's certificate is not for servers (extended key usage): give the relay one with serverAuth"
        case "authority_as_peer":
            return (
                "the relay shows a CA's certificate (CA:TRUE) as its own: give it one that a CA has signed, or add that"
                f" very one to {shown.authorities}"
            )
        case "bad_certificate":
            return f"the relay's certificate cannot be used: {failure.reason}"
    return failure.reason


def of_end(closed: Closed, shown: Shown) -> str:
    """The reason for which a connection ended."""
    return _of_close(closed.cause, closed.code, closed.reason, shown)


def is_for_expiry(closed: Closed) -> bool:
    """Whether the relay ended a connection because our certificate has expired, by its clock."""
    return (closed.cause, closed.code) in (("application", _EXPIRED), ("peer", _CRYPTO + _ALERT_EXPIRED))


def of_refusal(role: Role, service: str, cert_file: str | Path | None) -> str:
    """The remedy for a refused registration, by the names in our certificate."""
    if cert_file is None:
        return "no certificate was shown; give --cert and --key, or ask for a rule for anonymous peers"
    try:
        identity = read_identity(cert_file)
    except CertificateError as error:
        return str(error)
    names = ", ".join(identity.dns_names) or "none"
    granting = granting_name(identity, role, service)
    if granting is None:
        return f"none of the names in {cert_file} ({names}) grants it, so a rule of the relay must"
    return f"the name {granting} in {cert_file} would grant it, so a rule of the relay refuses it (policy explain)"


def read_identity(path: str | Path) -> Identity:
    """The identity in a certificate file. Raises ``CertificateError``."""
    return identity_of(load_certificates(Path(path))[0].public_bytes(Encoding.DER))


def _of_close(cause: str, code: int, reason: str, shown: Shown) -> str:
    match cause:
        case "application":
            ours = f"; see {shown.ours}" if code in _ABOUT_OUR_CERTIFICATE else ""
            return f"the relay closed the connection (code {code}): {reason or 'no reason given'}{ours}"
        case "peer" if code == CONNECTION_REFUSED and shown.joining:
            return (
                "the relay takes no requests to join from here now: too many came, or too many were refused; try again"
                " in a minute"
            )
        case "peer" if code == CONNECTION_REFUSED:
            return "the relay takes no connections now: it is full, or about to stop"
        case "peer" if _CRYPTO <= code < _CRYPTO + 0x100:
            return f"the relay refuses the handshake: {_of_alert(code - _CRYPTO, shown)}"
        case "idle_timeout":
            return "the relay has fallen silent"
        case "reset":
            return "the relay has no such connection any more: it was restarted"
    return f"the connection ended ({cause}, code {code}): {reason or 'no reason given'}"


def _of_alert(alert: int, shown: Shown) -> str:
    """A TLS alert (RFC 8446 section 6.2) about us."""
    ours = shown.ours
    match alert:
        case 116:
            return "it wants a client certificate; give --cert and --key"
        case 48 | 51:
            return f"{ours} is not signed by a CA it trusts; issue one with its CA, or add ours to its --ca-cert"
        case _ if alert == _ALERT_EXPIRED:
            return f"{ours} has expired, by the relay's clock: renew it"
        case 44:
            return f"{ours} is revoked"
        case 43:
            return f"{ours} is not for clients (extended key usage): issue one with clientAuth"
        case 42 | 46:
            return f"it cannot use {ours}; the relay's log says why"
        case 120 if shown.joining:
            return (
                "nobody can join there: it issues no certificates (intermediate-server token create says why, on the"
                " relay), or its version is older"
            )
        case 120:
            return "it speaks another protocol than ztna-v1: is it a relay?"
    return f"TLS alert {alert}"
