"""What is read from a certificate, from hostile ones too: an identity or a ``CertificateError``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from intermediate_server.errors import CertificateError
from intermediate_server.pki import describe, identity_of
from intermediate_server.pki.inspect import MAX_CERTIFICATE_BYTES

KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC = KEY.public_key()
START = datetime(2026, 1, 1, tzinfo=UTC)
END = datetime(2027, 1, 1, tzinfo=UTC)
SAN = x509.ObjectIdentifier("2.5.29.17")


def certificate(
    names: Sequence[x509.GeneralName] = (),
    *,
    key: CertificatePublicKeyTypes = PUBLIC,
    subject: str = "laptop",
    san: bytes | None = None,
    more: x509.UnrecognizedExtension | None = None,
) -> bytes:
    """A self-signed certificate, DER; ``san`` is put in the extension as it is."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key)
        .serial_number(7)
        .not_valid_before(START)
        .not_valid_after(END)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if san is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(SAN, san), critical=False)
    if more is not None:
        builder = builder.add_extension(more, critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def raw_names(*names: bytes, tag: int = 0x82) -> bytes:
    """A SubjectAlternativeName of short names, whatever bytes they hold."""
    body = b"".join(bytes([tag, len(name)]) + name for name in names)
    length = bytes([len(body)]) if len(body) < 0x80 else b"\x82" + len(body).to_bytes(2, "big")
    return b"\x30" + length + body


def test_what_an_identity_holds() -> None:
    der = certificate(
        [
            x509.DNSName("Agent.WEB.ztna."),
            x509.UniformResourceIdentifier("spiffe://Example.org/Laptop"),
            x509.RFC822Name("who@example.org"),
            x509.DNSName("agent.db.ztna"),
        ]
    )
    identity = identity_of(der)
    assert identity.fingerprint == hashlib.sha256(der).hexdigest()
    assert (
        identity.key_hash
        == hashlib.sha256(KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    )
    assert identity.subject == "CN=laptop"
    assert identity.dns_names == ("agent.web.ztna", "agent.db.ztna")
    assert identity.uris == ("spiffe://Example.org/Laptop",)
    assert (identity.not_before, identity.not_after) == (START, END)


KEYS: dict[str, CertificatePublicKeyTypes] = {
    "P-384": ec.generate_private_key(ec.SECP384R1()).public_key(),
    "Ed25519": ed25519.Ed25519PrivateKey.generate().public_key(),
    "Ed448": ed448.Ed448PrivateKey.generate().public_key(),
    "RSA": rsa.generate_private_key(65537, 2048).public_key(),
    "RSA of 8192 bits": rsa.RSAPublicNumbers(65537, (1 << 8191) + 1).public_key(),
    "DSA": dsa.generate_private_key(2048).public_key(),
}


@pytest.mark.parametrize("kind", KEYS)
def test_the_key_hash_is_of_the_whole_key_whatever_its_kind(kind: str) -> None:
    spki = KEYS[kind].public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert identity_of(certificate(key=KEYS[kind])).key_hash == hashlib.sha256(spki).digest()


def test_a_certificate_without_names() -> None:
    identity = identity_of(certificate())
    assert (identity.dns_names, identity.uris) == ((), ())


def test_only_one_trailing_dot_goes() -> None:
    identity = identity_of(certificate(san=raw_names(b"agent.web.ztna..")))
    assert identity.dns_names == ("agent.web.ztna.",)


@pytest.mark.parametrize("name", [b"agent.web.ztna\0.evil", b"\0", b"agent.\x1b[2Jweb.ztna", b"agent.web.ztna\n"])
def test_control_characters_stay_or_refuse_the_certificate_but_never_cut_a_name(name: bytes) -> None:
    try:
        names = identity_of(certificate(san=raw_names(name))).dns_names
    except CertificateError:
        return
    assert names == (name.decode().lower(),)


def test_three_hundred_names_are_read() -> None:
    names = [x509.DNSName(f"agent.s{number}.ztna") for number in range(300)]
    assert len(identity_of(certificate(names)).dns_names) == 300


@pytest.mark.parametrize(
    "san",
    [
        raw_names(b"\xff\xfe"),
        raw_names(b"x", tag=0x85),
        raw_names(b"\x01\x02\x03", tag=0x87),
        b"",
        b"\x30\x05\x82",
        b"\x04\x00",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x00" * 50,
    ],
)
def test_names_that_cannot_be_read_are_no_names(san: bytes) -> None:
    try:
        identity = identity_of(certificate(san=san))
    except CertificateError as error:
        assert "issue a new one" in str(error)
    else:
        assert not [name for name in identity.dns_names if name.endswith(".ztna")]


def test_two_name_extensions_are_refused() -> None:
    # Issuer names under the object identifier of the subject's: 2.5.29.18 becomes 2.5.29.17.
    names = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.18"), raw_names(b"agent.db.ztna"))
    der = certificate([x509.DNSName("agent.web.ztna")], more=names)
    assert identity_of(der).dns_names == ("agent.web.ztna",)
    double = der.replace(b"\x55\x1d\x12", b"\x55\x1d\x11")
    with pytest.raises(CertificateError):
        identity_of(double)
    with pytest.raises(CertificateError):
        describe(pem(double))


GOOD = certificate([x509.DNSName("agent.web.ztna")])


@pytest.mark.parametrize("size", range(0, len(GOOD), 7))
def test_every_cut_is_an_error(size: int) -> None:
    with pytest.raises(CertificateError):
        identity_of(GOOD[:size])


def test_a_huge_certificate_is_not_even_parsed() -> None:
    with pytest.raises(CertificateError, match="too large"):
        identity_of(GOOD + bytes(MAX_CERTIFICATE_BYTES))


def pem(*ders: bytes) -> bytes:
    return b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in ders)


def test_a_description_for_people() -> None:
    first, second = describe(pem(GOOD, certificate(key=KEYS["RSA"], subject="other")))
    assert first.names == ("DNS:agent.web.ztna",)
    assert (first.key, second.key) == ("ECDSA secp256r1", "RSA 2048")
    assert (first.subject, second.subject) == ("CN=laptop", "CN=other")
    assert (first.serial, first.is_ca, first.usages) == ("7", False, ())
    assert first.not_after - first.not_before == timedelta(days=365)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"]
)
def test_what_cannot_be_described(content: bytes) -> None:
    with pytest.raises(CertificateError):
        describe(content)
