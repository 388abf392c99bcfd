"""Certificates of one benchmark run: a CA, a server and as many clients as are asked for.

Made here and not by the program under test, because ten thousand identities are wanted at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SERVER_NAME = "ztna-server"
_SERVER_NAMES = [
    x509.DNSName(SERVER_NAME),
    x509.DNSName("localhost"),
    x509.IPAddress(ip_address("127.0.0.1")),
    x509.IPAddress(ip_address("::1")),
]
_CLIENT_NAMES = [x509.DNSName("agent.*.ztna"), x509.DNSName("connector.*.ztna")]


@dataclass(frozen=True, slots=True)
class Certificates:
    """Where the PEM files of a run are."""

    directory: Path
    ca: Path
    server_cert: Path
    server_key: Path
    identities: int

    @property
    def client_arguments(self) -> list[str]:
        """Arguments of the load generator for the client identities; it replaces ``{}`` by their numbers."""
        pattern = str(self.directory / "client-{}")
        return ["--cert", f"{pattern}.pem", "--key", f"{pattern}.key", "--identities", str(self.identities)]


def make(directory: Path, *, identities: int) -> Certificates:
    """Write a CA, a server certificate and ``identities`` client certificates, each with its own P-256 key."""
    now = datetime.now(UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "benchmark CA")])

    def issue(name: str, names: list[x509.GeneralName], usage: x509.ObjectIdentifier) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        return _write(directory / name, certificate, key)

    ca_certificate = (
        x509.CertificateBuilder()
        .subject_name(ca_name)
        .issuer_name(ca_name)
        .public_key(ca_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    ca, _ = _write(directory / "ca", ca_certificate, ca_key)
    server_cert, server_key = issue("server", [*_SERVER_NAMES], ExtendedKeyUsageOID.SERVER_AUTH)
    for number in range(identities):
        issue(f"client-{number}", [*_CLIENT_NAMES], ExtendedKeyUsageOID.CLIENT_AUTH)
    return Certificates(directory, ca, server_cert, server_key, identities)


def _write(stem: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> tuple[Path, Path]:
    pem, private = stem.with_suffix(".pem"), stem.with_suffix(".key")
    pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    private.touch(mode=0o600)
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return pem, private
