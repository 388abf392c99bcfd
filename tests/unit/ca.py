"""A CA for tests: it signs leaves, other CAs and lists, also those that no good CA would sign."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.pki import keys

ISSUED = datetime(2026, 6, 1, tzinfo=UTC)


class Ca:
    """A CA, of itself or below another."""

    def __init__(self, name: str = "ca", *, above: Ca | None = None, key: keys.PrivateKey | None = None) -> None:
        self.key = key or keys.new_key()
        self.certificate = (above or self).sign(name, self.key, is_ca=True)

    @property
    def pem(self) -> bytes:
        return keys.certificate_pem(self.certificate)

    def leaf(self) -> x509.Certificate:
        return self.sign("leaf", keys.new_key(), is_ca=False)

    def sign(self, name: str, key: keys.PrivateKey, *, is_ca: bool) -> x509.Certificate:
        subject = keys.common_name(name)
        own: x509.Certificate | None = getattr(self, "certificate", None)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if own is None else own.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
            .not_valid_after(datetime(2120, 1, 1, tzinfo=UTC))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        return builder.sign(self.key, keys.SHA256)

    def crl(
        self,
        *revoked: x509.Certificate,
        name: x509.Name | None = None,
        extension: x509.ExtensionType | None = None,
        due: datetime = ISSUED + timedelta(days=7),
    ) -> x509.CertificateRevocationList:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(name or self.certificate.subject)
            .last_update(ISSUED)
            .next_update(due)
        )
        for item in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(item.serial_number).revocation_date(ISSUED).build()
            builder = builder.add_revoked_certificate(entry)
        if extension is not None:
            builder = builder.add_extension(extension, critical=True)
        return builder.sign(self.key, keys.SHA256)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
