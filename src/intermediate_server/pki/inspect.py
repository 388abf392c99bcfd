"""Contents of a certificate: the identity of a peer, and a description for people."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.errors import CertificateError
from intermediate_server.pki import keys
from intermediate_server.types import Identity

MAX_CERTIFICATE_BYTES = 64 << 10
"""A handshake's whole certificate message is smaller in any sane deployment."""


def identity_of(der: bytes) -> Identity:
    """The identity in a leaf certificate that a handshake proved. Raises ``CertificateError`` and nothing else.

    Names are kept as written except for letter case and one trailing dot. A NUL or other control character stays, since
    a name cut at it would become another one. This runs once a handshake, so it reads only the fields of an
    ``Identity``; TLS checks the chain and the dates.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise CertificateError(f"the peer's certificate of {len(der)} bytes is too large; issue a smaller one")
    try:
        certificate = x509.load_der_x509_certificate(der)
        dns_names, uris = _names(certificate)
        return Identity(
            fingerprint=hashlib.sha256(der).hexdigest(),
            key_hash=hashlib.sha256(public_key_info(der)).digest(),
            subject=certificate.subject.rfc4514_string(),
            dns_names=dns_names,
            uris=uris,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )
    except CertificateError:
        raise
    except Exception as error:
        # The library has no closed set of errors for hostile input (ValueError, TypeError, its own); each of them means
        # that the holder has no identity.
        raise CertificateError(
            f"the peer's certificate cannot be read ({type(error).__name__}); issue a new one"
        ) from error


def _names(certificate: x509.Certificate) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return (), ()
    dns_names = tuple(name.lower().removesuffix(".") for name in names.get_values_for_type(x509.DNSName))
    return dns_names, tuple(names.get_values_for_type(x509.UniformResourceIdentifier))


def public_key_info(der: bytes) -> bytes:
    """The SubjectPublicKeyInfo as the certificate holds it (RFC 5280 section 4.1).

    It is cut from the bytes, since loading the key only to write it again is half the cost of an identity. The bytes
    have been parsed as a certificate before, so their structure is known to be good.
    """
    start, _ = _element(der, 0)  # Certificate
    start, _ = _element(der, start)  # TBSCertificate
    if der[start] == 0xA0:  # version
        start = _element(der, start)[1]
    for _ in range(5):  # serialNumber, signature, issuer, validity, subject
        start = _element(der, start)[1]
    return der[start : _element(der, start)[1]]


def issuer_and_serial(der: bytes) -> tuple[bytes, int]:
    """The issuer's name, as the certificate holds it, and the serial number. Raises ``CertificateError``.

    Together they name a certificate in a revocation list (RFC 5280 section 5.3).
    """
    try:
        start, _ = _element(der, 0)  # Certificate
        at, _ = _element(der, start)  # TBSCertificate
        if der[at] == 0xA0:  # version
            at = _element(der, at)[1]
        begin, issuer = _element(der, at)  # serialNumber, and after it signature
        issuer = _element(der, issuer)[1]
        if (der[at], der[issuer]) != (0x02, 0x30):
            raise ValueError("no INTEGER and SEQUENCE where they must be")
        serial = int.from_bytes(der[begin : _element(der, at)[1]], "big", signed=True)
        return der[issuer : _element(der, issuer)[1]], serial
    except (IndexError, ValueError):
        raise CertificateError("a certificate of the peer's chain cannot be read; issue a new one") from None


def subject_of(certificate: x509.Certificate) -> bytes:
    """The subject's name as the certificate holds it, DER."""
    der = certificate.tbs_certificate_bytes
    at, _ = _element(der, 0)
    if der[at] == 0xA0:  # version
        at = _element(der, at)[1]
    for _ in range(4):  # serialNumber, signature, issuer, validity
        at = _element(der, at)[1]
    return der[at : _element(der, at)[1]]


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether a certificate is a CA's (RFC 5280 section 4.2.1.9)."""
    try:
        constraints = _extension(certificate.extensions, x509.BasicConstraints)
    except (ValueError, x509.DuplicateExtension):
        return False
    return constraints is not None and constraints.ca


def _element(der: bytes, offset: int) -> tuple[int, int]:
    """Begin and end of the content of the DER element at ``offset``."""
    length = der[offset + 1]
    start = offset + 2
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(der[start : start + size], "big")
        start += size
    if start + length > len(der):
        raise ValueError("an element reaches beyond the certificate")
    return start, start + length


@dataclass(frozen=True, slots=True)
class Description:
    """A certificate as ``pki show`` prints it."""

    subject: str
    issuer: str
    serial: str
    """Hexadecimal, lower-case."""
    fingerprint: str
    """SHA-256 of the certificate, lower-case hex."""
    key: str
    """Kind of the public key, ``ECDSA secp256r1`` for instance."""
    is_ca: bool
    names: tuple[str, ...]
    """Every subject alternative name with its kind: ``DNS:agent.web.ztna``."""
    usages: tuple[str, ...]
    """Extended key usages."""
    not_before: datetime
    not_after: datetime
    """Validity, aware UTC."""


def describe(pem: bytes) -> list[Description]:
    """A description of each certificate in a PEM file, in order. Raises ``CertificateError``."""
    return [_describe(certificate) for certificate in keys.parse_certificates(pem, "file")]


def _describe(certificate: x509.Certificate) -> Description:
    try:
        extensions = certificate.extensions
        constraints = _extension(extensions, x509.BasicConstraints)
        names = _extension(extensions, x509.SubjectAlternativeName)
        usages = _extension(extensions, x509.ExtendedKeyUsage)
        return Description(
            subject=certificate.subject.rfc4514_string(),
            issuer=certificate.issuer.rfc4514_string(),
            serial=f"{certificate.serial_number:x}",
            fingerprint=hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
            key=_key_name(certificate),
            is_ca=constraints is not None and constraints.ca,
            names=tuple(_name_text(name) for name in names) if names is not None else (),
            usages=tuple(_usage_text(usage) for usage in usages) if usages is not None else (),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise CertificateError("the certificate holds fields that cannot be read; issue a new one") from None


_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


def _extension(extensions: x509.Extensions, kind: type[_Extension]) -> _Extension | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _key_name(certificate: x509.Certificate) -> str:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return "unsupported"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ECDSA {key.curve.name}"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    return "Ed25519" if isinstance(key, ed25519.Ed25519PublicKey) else type(key).__name__


def _name_text(name: x509.GeneralName) -> str:
    kinds: dict[type[x509.GeneralName], str] = {
        x509.DNSName: "DNS",
        x509.UniformResourceIdentifier: "URI",
        x509.IPAddress: "IP",
        x509.RFC822Name: "email",
    }
    kind = kinds.get(type(name))
    return f"{kind}:{name.value}" if kind else f"other:{type(name).__name__}"


def _usage_text(usage: x509.ObjectIdentifier) -> str:
    known = {keys.SERVER_AUTH: "server", keys.CLIENT_AUTH: "client"}
    return known.get(usage, usage.dotted_string)
