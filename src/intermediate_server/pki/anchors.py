"""Trust anchors: the CAs of client certificates, now and before a reload, and the chains that reach them.

TLS checks a chain once, in the handshake. This module checks the chains of handshakes that began under earlier CAs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.pki import keys
from intermediate_server.pki.inspect import is_authority, public_key_info, subject_of
from intermediate_server.pki.revocation import CertificateId


@dataclass(frozen=True, slots=True)
class Anchors:
    """The CAs of ``ca-cert``; those of one configuration follow those of the one before."""

    authorities: tuple[x509.Certificate, ...] = ()
    left: frozenset[bytes] = frozenset()
    """Names of CAs that are trusted no more; another key under the same name is another CA."""

    def followed_by(self, authorities: Sequence[x509.Certificate]) -> Anchors:
        """The anchors when these CAs replace the present ones."""
        after = Anchors(tuple(authorities))
        return Anchors(after.authorities, self.left | self.gone(after))

    def gone(self, after: Anchors) -> frozenset[bytes]:
        """The names, DER, of CAs that are trusted here and not in ``after``."""
        stay = {_name_and_key(item) for item in after.authorities}
        return frozenset(subject_of(item) for item in self.authorities if _name_and_key(item) not in stay)

    def reached(self, chain: Sequence[bytes], ids: Sequence[CertificateId]) -> bool:
        """Whether the chain of a completed handshake reaches a CA that is trusted now.

        ``chain`` is DER, leaf first. Costs nothing unless a CA with the name of an issuer has left.
        """
        if all(item.issuer not in self.left for item in ids):
            return True
        try:
            return path_of([x509.load_der_x509_certificate(der) for der in chain], self.authorities) is not None
        except (ValueError, UnsupportedAlgorithm):
            return False


def path_of(
    chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]
) -> list[x509.Certificate] | None:
    """The certificates from the leaf up to one that a CA has signed; None if no CA is reached.

    It checks names, signatures and CA flags, but no dates and purposes.
    """
    path, rest = [chain[0]], [item for item in chain[1:] if is_authority(item)]
    while not any(keys.is_signed_by(path[-1], authority) for authority in authorities):
        parent = next((item for item in rest if keys.is_signed_by(path[-1], item)), None)
        if parent is None:
            return None
        rest.remove(parent)
        path.append(parent)
    return path


def _name_and_key(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    return subject_of(certificate), public_key_info(certificate.public_bytes(Encoding.DER))
