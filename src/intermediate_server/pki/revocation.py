"""Revocation of client certificates: revocation lists (RFC 5280 section 5) and a plain list of fingerprints.

The check is here and not in the TLS library. So a refused peer learns the reason, the audit log has it, and live
connections are checked as new ones are; a peer refused by TLS only sees a failed handshake.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from intermediate_server.errors import CertificateError
from intermediate_server.pki import files
from intermediate_server.pki.inspect import issuer_and_serial
from intermediate_server.pki.lists import read_lists
from intermediate_server.pki.serials import Serials

MAX_CHAIN = 16
"""Certificates of one peer that are checked; TLS follows shorter chains."""

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class CertificateId(NamedTuple):
    """The names of a certificate in lists of revoked ones."""

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
    """All revoked certificates; none by default."""

    serials: Set[tuple[bytes, int]] = frozenset()
    """Revoked: issuer, as :class:`CertificateId` has it, and serial number."""
    fingerprints: frozenset[str] = frozenset()
    """Denied by fingerprint."""
    next_update: datetime | None = None
    """The earliest moment at which one of the CRLs is outdated, aware UTC; None without a CRL."""

    @property
    def issuers(self) -> Set[bytes]:
        """The names, DER, of the CAs that have revoked something."""
        return self.serials.issuers if isinstance(self.serials, Serials) else {issuer for issuer, _ in self.serials}

    def refusal(self, chain: Iterable[CertificateId]) -> str | None:
        """The reason to refuse a peer that showed these certificates, or None.

        An intermediate counts as the leaf does, since a revoked CA means everything it signed.
        """
        for place, item in enumerate(chain):
            which = "certificate" if place == 0 else "intermediate certificate"
            if item.fingerprint in self.fingerprints:
                return f"{which} {item.fingerprint} is on the deny list"
            if (item.issuer, item.serial) in self.serials:
                return f"{which} with serial {item.serial:x} is revoked"
        return None

    def overdue(self, now: datetime) -> bool:
        """Whether a CRL is outdated. Its entries stay revoked."""
        return self.next_update is not None and now >= self.next_update


def load_revocations(
    *, crls: Sequence[Path], deny_lists: Sequence[Path], ca_pem: bytes | None, own: Path | None = None
) -> Revocations:
    """Read all lists. Raises ``CertificateError``, as :func:`read_lists` does."""
    lists = read_lists(crls, ca_pem, own=own)
    return Revocations(
        serials=lists.serials,
        fingerprints=frozenset(word for path in deny_lists for word in _read_deny_list(path)),
        next_update=lists.next_update,
    )


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
