"""A CA of a test's own, which signs whatever it is asked to."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


NOW = datetime.now(UTC)


DAY = timedelta(days=1)


class Ca:
    """A CA of the test's own, which signs whatever it is asked to."""

    def __init__(self, name: str, parent: Ca | None = None, names: Sequence[str] = ()) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.parent = parent
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self.name, self.key, (NOW - DAY, NOW + 30 * DAY), names)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        signer = parent or self
        self.certificate = builder.issuer_name(signer.name).sign(signer.key, hashes.SHA256())

    def issue(
        self,
        *names: str,
        key: Key | None = None,
        valid: tuple[datetime, datetime] = (NOW - DAY, NOW + DAY),
        uris: Sequence[str] = (),
        common_name: str = "peer",
    ) -> tuple[bytes, bytes]:
        """Certificate chain and key of a peer, PEM."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = self._builder(subject, key, valid, names, uris).issuer_name(self.name)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        chain = [builder.sign(self.key, hashes.SHA256())]
        if self.parent is not None:
            chain.append(self.certificate)
        pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
        return pem, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @staticmethod
    def _builder(
        subject: x509.Name,
        key: Key,
        valid: tuple[datetime, datetime],
        names: Sequence[str] = (),
        uris: Sequence[str] = (),
    ) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(valid[0]).not_valid_after(valid[1])
        general: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        general += [x509.UniformResourceIdentifier(uri) for uri in uris]
        if general:
            builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
        return builder
