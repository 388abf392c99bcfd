"""Which client certificates are taken back: revocation lists (RFC 5280 section 5) and a plain list of fingerprints.

Checked here and not in the TLS library, so that a refused peer is told why, the audit log has it, and live connections
are looked at with the same eyes as new ones. A peer refused by TLS would only ever see a failed handshake.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes

from intermediate_server.errors import CertificateError
from intermediate_server.pki import files, keys
from intermediate_server.pki.inspect import is_authority, issuer_and_serial, subject_of

MAX_CHAIN = 16
"""Certificates of one peer that are looked at; TLS follows shorter chains."""

_PEM_CRL = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)
_PEM_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class CertificateId(NamedTuple):
    """What names a certificate in lists of revoked ones."""

    fingerprint: str
    """SHA-256 of the certificate, lower-case hex."""
    issuer: bytes
    """The issuer's name as the certificate has it, DER."""
    serial: int


def certificate_ids(chain: Sequence[bytes]) -> tuple[CertificateId, ...]:
    """The ids of the certificates a peer showed, leaf first. Raises ``CertificateError``."""
    if len(chain) > MAX_CHAIN:
        raise CertificateError(f"the peer sent {len(chain)} certificates; {MAX_CHAIN} are supported")
    return tuple(CertificateId(hashlib.sha256(der).hexdigest(), *issuer_and_serial(der)) for der in chain)


@dataclass(frozen=True, slots=True)
class Revocations:
    """Everything that is taken back; empty by default."""

    serials: frozenset[tuple[bytes, int]] = frozenset()
    """Revoked: issuer, as :class:`CertificateId` has it, and serial number."""
    fingerprints: frozenset[str] = frozenset()
    """Denied by fingerprint."""
    next_update: datetime | None = None
    """The earliest moment at which one of the CRLs should have been replaced, aware UTC; None without a CRL."""

    def refusal(self, chain: Iterable[CertificateId]) -> str | None:
        """Why a peer that showed these certificates is refused, None when it is not.

        An intermediate counts as the leaf does: who takes a CA back means everything it signed.
        """
        for place, item in enumerate(chain):
            which = "certificate" if place == 0 else "intermediate certificate"
            if item.fingerprint in self.fingerprints:
                return f"{which} {item.fingerprint} is on the deny list"
            if (item.issuer, item.serial) in self.serials:
                return f"{which} with serial {item.serial:x} is revoked"
        return None

    def overdue(self, now: datetime) -> bool:
        """Whether a CRL should have been replaced by now. What it revokes stays revoked."""
        return self.next_update is not None and now >= self.next_update


def load_revocations(
    *, crls: Sequence[Path], deny_list: Path | None, ca_pem: bytes | None, own: Path | None = None
) -> Revocations:
    """Read all lists. Raises ``CertificateError``: half a list would let somebody in.

    Every CRL must be signed by a CA of ``ca_pem``, or by one below it whose certificate is in the same file: a CRL
    for the leaves of an intermediate comes from that intermediate. ``own`` is the file of the development CA, where
    lists of CAs before it are left aside: their certificates count no more.
    """
    serials: set[tuple[bytes, int]] = set()
    updates: list[datetime] = []
    trusted = x509.load_pem_x509_certificates(ca_pem) if ca_pem is not None else []
    for path in crls:
        items, certificates = parse_crls(files.read_file(path, "revocation list"), path)
        authorities = _with_intermediates(trusted, certificates)
        for item in items:
            issuers = _signers(item, authorities)
            if path == own and all(item.issuer != ca.subject for ca in authorities):
                continue
            if not issuers:
                raise CertificateError(
                    f"revocation list {path} is not signed by the client CA, nor by one below it whose certificate is "
                    "in the same file; check --ca-cert and --crl"
                )
            _check_kind(item, path)
            serials.update((issuer, entry.serial_number) for entry in item for issuer in issuers)
            if item.next_update_utc is not None:
                updates.append(item.next_update_utc)
    return Revocations(
        serials=frozenset(serials),
        fingerprints=frozenset(_read_deny_list(deny_list)) if deny_list is not None else frozenset(),
        next_update=min(updates, default=None),
    )


def parse_crls(data: bytes, path: Path) -> tuple[list[x509.CertificateRevocationList], list[x509.Certificate]]:
    """The lists and the certificates of a file, PEM or DER. Raises ``CertificateError``."""
    try:
        if b"-----BEGIN" not in data:
            return [x509.load_der_x509_crl(data)], []
        crls, certificates = _PEM_CRL.findall(data), _PEM_CERTIFICATE.findall(data)
        if not crls or len(crls) + len(certificates) != data.count(b"-----BEGIN"):
            raise ValueError
        return [x509.load_pem_x509_crl(block) for block in crls], [
            x509.load_pem_x509_certificate(block) for block in certificates
        ]
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CertificateError(f"revocation list {path} is not a CRL in PEM or DER; check the file") from None


def _with_intermediates(
    trusted: Sequence[x509.Certificate], certificates: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """The trusted CAs and those of ``certificates`` that they certify, directly or not."""
    known, unknown = list(trusted), [item for item in certificates if is_authority(item)]
    for above in known:  # it grows meanwhile
        below = [item for item in unknown if item not in known and keys.is_signed_by(item, above)]
        known += below
    return known


def _signers(crl: x509.CertificateRevocationList, authorities: Sequence[x509.Certificate]) -> list[bytes]:
    """The names of the CAs that signed the list, as their certificates have them.

    A leaf chains to a CA when it has the same bytes as issuer; the CRL's own spelling of the name may differ.
    """
    return [subject_of(ca) for ca in authorities if is_list_of(crl, ca)]


def is_list_of(crl: x509.CertificateRevocationList, ca: x509.Certificate) -> bool:
    """Whether the CA issued the list, by name and signature."""
    try:
        return ca.subject == crl.issuer and crl.is_signature_valid(
            cast("CertificateIssuerPublicKeyTypes", ca.public_key())
        )
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False


def _check_kind(crl: x509.CertificateRevocationList, path: Path) -> None:
    """Refuse what would be half understood: delta and indirect lists (RFC 5280 section 5.2)."""
    try:
        for extension in crl.extensions:
            value = extension.value
            whole = isinstance(value, x509.IssuingDistributionPoint) and not (
                value.indirect_crl or value.only_some_reasons or value.only_contains_attribute_certs
            )
            if extension.critical and not whole:
                raise CertificateError(
                    f"revocation list {path} is a delta or indirect CRL, which is not supported; use a complete one"
                )
    except (ValueError, TypeError) as error:
        raise CertificateError(f"revocation list {path} has extensions that cannot be read: {error}") from None


def _read_deny_list(path: Path) -> Iterator[str]:
    try:
        text = files.read_file(path, "deny list").decode()
    except UnicodeDecodeError:
        raise CertificateError(f"deny list {path} is not UTF-8 text; check the file") from None
    for number, line in enumerate(text.splitlines(), start=1):
        word = line.partition("#")[0].strip().replace(":", "").lower()
        if not word:
            continue
        if _FINGERPRINT.fullmatch(word) is None:
            raise CertificateError(f"deny list {path}, line {number}: not a SHA-256 fingerprint of 64 hex digits")
        yield word
