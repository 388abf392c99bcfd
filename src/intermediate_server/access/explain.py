"""Explanation of a decision: the answer to a registration and its reasons, without a server and a peer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.access.loading import authority_path, describe_policy, load_admission, read_authority
from intermediate_server.config import Settings
from intermediate_server.errors import ConfigError
from intermediate_server.pki import certificate_ids, identity_of, keys
from intermediate_server.pki.anchors import path_of
from intermediate_server.policy import Decision, Deny, Guard, make_policy
from intermediate_server.policy.base import Step, speaks_for_authorize
from intermediate_server.types import Address, ConnectionId, Identity, Peer, Registration, Role


@dataclass(frozen=True, slots=True)
class Certificate:
    """A peer's certificate as a handshake would show it."""

    identity: Identity
    chain: tuple[x509.Certificate, ...] = ()
    """Leaf first; empty for a certificate that is only described, whose issuer and serial are unknown."""

    @classmethod
    def read(cls, path: Path) -> Certificate:
        """From a PEM file. Raises ``CertificateError``."""
        chain = tuple(keys.load_certificates(path))
        return cls(identity_of(chain[0].public_bytes(Encoding.DER)), chain)


@dataclass(frozen=True, slots=True)
class AccessQuery:
    """A registration to be explained."""

    certificate: Certificate | None
    """None for a peer without one."""
    role: Role
    service: str
    source: IPv4Address | IPv6Address
    at: datetime | None = None
    """Aware; None is now."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision and the way to it."""

    decision: Decision
    steps: tuple[Step, ...] = ()
    """The steps before the decision, in order; only rules and names in certificates give them."""
    notes: tuple[str, ...] = ()
    """Checks that were left out, and why."""


class Explainer:
    """The access of a configuration; one object serves many queries, and is closed after them."""

    def __init__(self, settings: Settings) -> None:
        """Raises ``ConfigError`` and ``CertificateError``; unlike a server it makes no file."""
        self._settings = settings
        self._policy = make_policy(settings)
        self._guard = Guard(self._policy)
        self._ca_path = authority_path(settings)
        ca_pem = read_authority(settings)
        self._authorities = None if ca_pem is None else keys.parse_certificates(ca_pem, self._ca_path)
        self._admission = load_admission(settings, ca_pem)

    @property
    def described(self) -> str:
        """The kind of policy, in a few words."""
        return describe_policy(self._settings)

    async def aclose(self) -> None:
        """Close the policy."""
        await self._guard.aclose()

    async def explain(self, query: AccessQuery) -> Explanation:
        """The server's decision. Raises ``ConfigError`` for another time than now if the policy cannot tell."""
        at = query.at or datetime.now(UTC)
        certificate = None if self._settings.client_auth == "off" else query.certificate
        notes = self._notes(query)
        refused = self._rejected_at_the_door(certificate, at)
        if refused is not None:
            return Explanation(refused, notes=notes)
        identity = None if certificate is None else certificate.identity
        peer = Peer(ConnectionId(0), Address(query.source, 0), identity)
        registration = Registration(peer, query.role, query.service)
        if speaks_for_authorize(self._policy, "explain"):
            explained = self._policy.explain(registration, at)
            if explained is not None:
                return Explanation(*explained, notes)
        if query.at is not None:
            raise ConfigError("another time than now is only known to rules; this policy has a clock of its own")
        return Explanation(await self._guard.authorize(registration), notes=notes)

    def _rejected_at_the_door(self, certificate: Certificate | None, at: datetime) -> Deny | None:
        """The reason that would end the handshake or the connection before any policy is asked."""
        if certificate is not None and at < certificate.identity.not_before:
            begin = certificate.identity.not_before.isoformat()
            return Deny(f"the certificate is not valid before {begin}", "certificate")
        chain = () if certificate is None else certificate.chain
        if chain and self._authorities is not None:
            path = path_of(chain, self._authorities)
            if path is None:
                return Deny(f"the certificate does not chain to {self._ca_path}", "certificate")
            unfit = _not_for_clients(path, at)
            if unfit is not None:
                return Deny(unfit, "certificate")
        ids = certificate_ids([_der(item) for item in chain])
        refusal = self._admission.refusal(None if certificate is None else certificate.identity, ids, at)
        return None if refusal is None else Deny(refusal.reason, refusal.cause)

    def _notes(self, query: AccessQuery) -> tuple[str, ...]:
        notes = []
        if query.certificate is not None and self._settings.client_auth == "off":
            notes.append("client-auth is off: the server never sees the certificate")
        elif query.certificate is not None and query.certificate.chain and self._authorities is None:
            notes.append(f"there is no client CA at {self._ca_path}: who issued the certificate was not checked")
        return tuple(notes)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _not_for_clients(path: Sequence[x509.Certificate], at: datetime) -> str | None:
    """The reason for which TLS refuses a client with this path to a CA, or None (RFC 5280 sections 4.1.2.5, 4.2.1.12).

    The leaf's own dates are the admission's to judge.
    """
    for place, item in enumerate(path):
        which = "certificate" if place == 0 else f"intermediate certificate {item.subject.rfc4514_string()}"
        if place > 0 and not item.not_valid_before_utc <= at <= item.not_valid_after_utc:
            return f"the {which} is valid from {item.not_valid_before_utc} to {item.not_valid_after_utc}"
        try:
            usages = item.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except x509.ExtensionNotFound:
            continue
        except ValueError as error:
            return f"the {which} has extensions that cannot be read: {error}"
        if keys.CLIENT_AUTH not in usages:
            return f"the {which} is not for clients: its extended key usage lacks clientAuth"
    return None
