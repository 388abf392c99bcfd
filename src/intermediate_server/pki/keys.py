"""Private keys, and the signing of certificates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from intermediate_server.errors import CertificateError
from intermediate_server.pki import files, pem

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
KeyType = Literal["p256", "ed25519"]

SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH

SHA256 = hashes.SHA256()

EARLIEST = datetime(2024, 1, 1, tzinfo=UTC)
"""The earliest begin of a certificate: the clock of a host without a battery starts in 1970."""
BACKDATE = timedelta(hours=1)
"""Certificates begin this long before their issue, since clients' clocks are not exact."""


def utc_now() -> datetime:
    """The time, aware and in whole seconds, as certificates hold it."""
    return datetime.now(UTC).replace(microsecond=0)


def new_key(kind: KeyType = "p256") -> PrivateKey:
    """A fresh private key."""
    return ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())


def key_pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """A private key as PKCS #8 PEM, encrypted where a passphrase is given."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def certificate_pem(*certificates: x509.Certificate) -> bytes:
    """Certificates as PEM, one after the other."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def public_bytes(key: CertificatePublicKeyTypes) -> bytes:
    """A public key as DER SubjectPublicKeyInfo."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_hash(key: CertificatePublicKeyTypes) -> bytes:
    """SHA-256 of a public key's SubjectPublicKeyInfo, 32 bytes: the same after a renewal with the same key."""
    return hashlib.sha256(public_bytes(key)).digest()


class LockedKey(CertificateError):
    """A private key has a passphrase, and another one or none was given."""


def parse_key(data: bytes, where: Path | str, passphrase: bytes | None = None) -> PrivateKey:
    """The first private key of a PEM file: ECDSA, RSA or Ed25519. Raises ``CertificateError``.

    ``LockedKey`` where its passphrase is another one. The error quotes nothing of the file.
    """
    section = next(pem.select(pem.read(data, f"private key {where}"), pem.KEY), None)
    if section is None:
        raise CertificateError(f"private key {where} is not a PEM private key; check the file")
    locked = section.label == "ENCRYPTED PRIVATE KEY"
    try:
        key = serialization.load_pem_private_key(section.pem(), password=passphrase if locked else None)
    except TypeError:
        raise LockedKey(f"private key {where} has a passphrase; remove it with: openssl pkey") from None
    except (ValueError, UnsupportedAlgorithm):
        if locked and passphrase is not None:
            raise LockedKey(f"private key {where} has another passphrase; try again") from None
        raise CertificateError(f"private key {where} is not a PEM private key; check the file") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey):
        raise CertificateError(f"private key {where} is of a type TLS does not use; make an ECDSA P-256 key")
    return key


def load_key(path: Path | str, *, readable: bool = False) -> PrivateKey:
    """As ``parse_key``, from a file that only its owner may read, or with ``readable`` everyone.

    Raises ``CertificateError``.
    """
    return parse_key(files.read_private_file(path, "private key file", readable=readable), path)


def parse_certificates(data: bytes, where: Path | str) -> list[x509.Certificate]:
    """All certificates of a PEM file, at least one. Raises ``CertificateError``, which names the damaged one."""
    sections = pem.read(data, f"certificate {where}")
    found = list(pem.select(sections, pem.CERTIFICATE))
    if not found:
        raise CertificateError(f"certificate {where} is not a PEM certificate; {_instead(data, sections)}")
    certificates = []
    for number, section in enumerate(found, start=1):
        der = section.der(f"certificate {where}")
        try:
            certificates.append(x509.load_der_x509_certificate(der))
        except (ValueError, UnsupportedAlgorithm):
            raise CertificateError(
                f"certificate {where}: certificate {number} of {len(found)}, in line {section.line}, cannot be read; "
                "replace it or take it out"
            ) from None
    return certificates


def _instead(data: bytes, sections: Sequence[pem.Section]) -> str:
    """The content of a file without a certificate, with the remedy."""
    if sections:
        return f"it holds {', '.join(dict.fromkeys(section.label for section in sections))}; check the file"
    if data.startswith(b"\x30"):
        return "it seems to be DER; convert it with: openssl x509 -inform DER"
    return "check the file"


def load_certificates(path: Path | str) -> list[x509.Certificate]:
    """As ``parse_certificates``, from a file. Raises ``CertificateError``."""
    return parse_certificates(files.read_file(path, "certificate file"), path)


def check_pair(certificate: x509.Certificate, key: PrivateKey, where: str) -> None:
    """Raise ``CertificateError`` unless the key is the certificate's."""
    try:
        same = public_bytes(certificate.public_key()) == public_bytes(key.public_key())
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(f"{where}: the certificate's key is of an unsupported type") from None
    if not same:
        raise CertificateError(f"{where}: the private key does not belong to the certificate; check that both match")


def belongs(certificate: x509.Certificate, key: PrivateKey) -> bool:
    """Whether the key is the certificate's."""
    try:
        check_pair(certificate, key, "")
    except CertificateError:
        return False
    return True


def is_signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the authority's key signed the certificate, by name and signature."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def common_name(text: str) -> x509.Name:
    """A name of one part, CN; at most 64 characters, the limit of X.520."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def sign(
    *,
    subject: x509.Name,
    public_key: CertificatePublicKeyTypes,
    authority: x509.Certificate | None,
    authority_key: PrivateKey,
    names: Sequence[x509.GeneralName],
    usage: ObjectIdentifier | None,
    not_before: datetime,
    not_after: datetime,
    serial: int | None = None,
) -> x509.Certificate:
    """Sign a certificate (RFC 5280): a leaf for ``usage``, or without ``authority`` the CA itself.

    Without ``serial`` it is a random one. A leaf never outlives its CA. The CA may not sign other CAs (path length 0).
    Raises ``CertificateError`` where the clock is wrong beyond doubt.
    """
    if not_before < EARLIEST:
        raise CertificateError(
            f"the clock says {not_before + BACKDATE:%Y-%m-%d %H:%M} UTC, and a certificate made now would be useless; "
            "set the clock"
        )
    is_ca = authority is None
    if authority is not None:
        not_after = min(not_after, authority.not_valid_after_utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if authority is None else authority.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number() if serial is None else serial)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
        .add_extension(_key_usage(is_ca=is_ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(authority_identifier(authority, authority_key), critical=False)
    )
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(authority_key, signing_hash(authority_key))


def sign_itself(name: str, key: PrivateKey, *, not_before: datetime, not_after: datetime) -> x509.Certificate:
    """The certificate of a CA, as :func:`sign` makes it."""
    return sign(
        subject=common_name(name),
        public_key=key.public_key(),
        authority=None,
        authority_key=key,
        names=(),
        usage=None,
        not_before=not_before,
        not_after=not_after,
    )


def signing_hash(key: PrivateKey) -> hashes.SHA256 | None:
    """The hash a key signs with; Ed25519 has its own."""
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def authority_identifier(authority: x509.Certificate | None, key: PrivateKey) -> x509.AuthorityKeyIdentifier:
    """The key identifier in the CA's own certificate, by which chains are found."""
    if authority is not None:
        try:
            own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
            return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own.value)
        except (x509.ExtensionNotFound, ValueError):
            pass
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
