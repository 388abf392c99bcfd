"""Certificate signing requests (RFC 2986), of which the relay takes the public key and nothing else."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from intermediate_server.errors import CertificateError

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey

_CURVES = (ec.SECP256R1, ec.SECP384R1)
_RSA_BITS = range(2048, 4097)
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_KEYS = "use P-256, P-384, Ed25519, or RSA of 2048 to 4096 bits"


class RequestError(CertificateError):
    """A signing request is refused; the text quotes nothing of it."""

    def __init__(self, cause: str, sentence: str) -> None:
        super().__init__(sentence)
        self.cause = cause
        """``csr`` for one that cannot be read or is not signed by its key, ``weak-key`` for its key."""


def read(der: bytes) -> tuple[x509.CertificateSigningRequest, PublicKey]:
    """A signing request and its key, whose holder has signed it. Raises ``RequestError`` and nothing else.

    The key is looked at first: to verify a signature by a key without bounds costs without bounds.
    """
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
    except Exception:
        # The library has no closed set of errors for hostile input.
        raise RequestError(
            "csr", f"the signing request cannot be read, or its key is of an unknown kind; {_KEYS}"
        ) from None
    match key:
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, _CURVES):
            pass
        case ed25519.Ed25519PublicKey():
            pass
        case rsa.RSAPublicKey() if key.key_size in _RSA_BITS and key.public_numbers().e == 65537:
            pass
        case _:
            raise RequestError("weak-key", f"a key of this kind or size gets no certificate; {_KEYS}")
    try:
        digest = request.signature_hash_algorithm
        signed = (digest is None or isinstance(digest, _HASHES)) and request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        signed = False
    # A bit string whose last bits are left out has the same signature as one that ends in zeros.
    if not signed or not der.endswith(b"\0" + request.signature):
        raise RequestError("csr", "the signing request is not signed by its own key with SHA-256, SHA-384 or SHA-512")
    return request, key
