"""Reading revocation lists (RFC 5280 section 5), large ones in a process of their own.

A list of 100 MB takes seconds, and single calls into the library hold the interpreter for more than one of them: on a
thread of the server they would delay every registration.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes

from intermediate_server.errors import CertificateError
from intermediate_server.pki import files, keys, pem
from intermediate_server.pki.inspect import is_authority, subject_of
from intermediate_server.pki.serials import Serials, merge, pack

MAX_CRL_BYTES = 512 << 20
"""The largest lists of public CAs had about 80 MB."""
LARGE = 1 << 20
"""Bytes of all lists from which on another process reads them; fewer take less than 0.1 s."""


@dataclass(frozen=True, slots=True)
class Lists:
    """The contents of several revocation lists together."""

    serials: Serials
    next_update: datetime | None
    """The earliest moment at which one is outdated, aware UTC; None without such a moment."""


def read_lists(paths: Sequence[Path], ca_pem: bytes | None, *, own: Path | None = None) -> Lists:
    """All lists of ``paths``, PEM or DER. Raises ``CertificateError``, since half a list would let a revoked peer in.

    Each must be signed by a CA of ``ca_pem``, or by one below it whose certificate is in the same file: a CRL for the
    leaves of an intermediate comes from that intermediate. ``own`` is the file of the development CA; the lists of
    earlier CAs in it are skipped, since their certificates are trusted no more.
    """
    if sys.executable and sum(map(_size, paths)) > LARGE:
        return _read_elsewhere(paths, ca_pem, own)
    return _read_here(paths, ca_pem, own)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read_here(paths: Sequence[Path], ca_pem: bytes | None, own: Path | None) -> Lists:
    trusted = keys.parse_certificates(ca_pem, "of the client CA") if ca_pem is not None else []
    blobs: dict[bytes, list[bytes]] = {}
    odd: set[tuple[bytes, int]] = set()
    updates: list[datetime] = []
    for path in paths:
        crls, certificates = parse_crls(files.read_file(path, "revocation list", limit=MAX_CRL_BYTES), path)
        authorities = _with_intermediates(trusted, certificates)
        for crl in crls:
            issuers = _signers(crl, authorities)
            if path == own and all(crl.issuer != ca.subject for ca in authorities):
                continue
            if not issuers:
                raise CertificateError(
                    f"revocation list {path} is not signed by the client CA, nor by one below it whose certificate is "
                    "in the same file; check --ca-cert and --crl"
                )
            _check_kind(crl, path)
            blob, rest = pack(entry.serial_number for entry in crl)
            for issuer in issuers:
                blobs.setdefault(issuer, []).append(blob)
                odd.update((issuer, serial) for serial in rest)
            if crl.next_update_utc is not None:
                updates.append(crl.next_update_utc)
    packed = {issuer: merge(each) for issuer, each in blobs.items()}
    return Lists(Serials(packed, frozenset(odd)), min(updates, default=None))


def _read_elsewhere(paths: Sequence[Path], ca_pem: bytes | None, own: Path | None) -> Lists:
    question = {
        "paths": [str(path) for path in paths],
        "ca": None if ca_pem is None else ca_pem.decode(),
        "own": None if own is None else str(own),
    }
    where = ", ".join(map(str, paths))
    try:
        done = subprocess.run(  # noqa: S603  this program, on files of the operator's
            [sys.executable, "-c", f"from {__name__} import answer; answer()"],
            input=json.dumps(question).encode(),
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise CertificateError(f"revocation list {where} cannot be read by a process of its own: {error}") from None
    head, _, body = done.stdout.partition(b"\n")
    told = json.loads(head)
    if told["error"] is not None:
        raise CertificateError(told["error"])
    packed, at = {}, 0
    for issuer, size in told["packed"]:
        packed[bytes.fromhex(issuer)] = body[at : at + size]
        at += size
    odd = frozenset((bytes.fromhex(issuer), int(serial)) for issuer, serial in told["odd"])
    due = told["next_update"]
    return Lists(Serials(packed, odd), None if due is None else datetime.fromisoformat(due))


def answer() -> None:
    """The other process: reads a question from standard input, writes the answer to standard output."""
    question = json.load(sys.stdin)
    ca, own = question["ca"], question["own"]
    paths = [Path(path) for path in question["paths"]]
    told: dict[str, object] = {"error": None}
    blobs: list[bytes] = []
    try:
        lists = _read_here(paths, None if ca is None else ca.encode(), None if own is None else Path(own))
    except CertificateError as error:
        told["error"] = str(error)
    else:
        serials = lists.serials
        told["packed"] = [[issuer.hex(), len(blob)] for issuer, blob in serials.packed.items()]
        told["odd"] = [[issuer.hex(), str(serial)] for issuer, serial in serials.odd]
        told["next_update"] = None if lists.next_update is None else lists.next_update.isoformat()
        blobs = list(serials.packed.values())
    sys.stdout.buffer.write(json.dumps(told).encode() + b"\n")
    for blob in blobs:
        sys.stdout.buffer.write(blob)


def parse_crls(data: bytes, path: Path) -> tuple[list[x509.CertificateRevocationList], list[x509.Certificate]]:
    """The lists and the certificates of a file, PEM or DER. Raises ``CertificateError``."""
    where = f"revocation list {path}"
    sections = pem.read(data, where)
    try:
        if not sections:
            return [x509.load_der_x509_crl(data)], []
        del data
        crls = [x509.load_der_x509_crl(each.der(where)) for each in pem.select(sections, pem.CRL)]
        certificates = [
            x509.load_der_x509_certificate(each.der(where)) for each in pem.select(sections, pem.CERTIFICATE)
        ]
        if not crls or len(crls) + len(certificates) != len(sections):
            raise ValueError
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CertificateError(f"revocation list {path} is not a CRL in PEM or DER; check the file") from None
    return crls, certificates


def _with_intermediates(
    trusted: Sequence[x509.Certificate], certificates: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """The trusted CAs, and the ones of ``certificates`` that they certify, directly or not."""
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
    """Refuse delta and indirect lists, which would be half understood (RFC 5280 section 5.2)."""
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
