"""The revocation list of the development CA, ``crl.pem`` of the state directory (RFC 5280 section 5).

The file holds the list of the present CA, and behind it the lists of earlier CAs until they end: a bundle of CAs may
still trust one of them. The caller of each writing function holds the directory's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.errors import CertificateError
from intermediate_server.pki import files, index, keys
from intermediate_server.pki.index import Issued
from intermediate_server.pki.lists import MAX_CRL_BYTES, is_list_of, parse_crls

CRL = "crl.pem"


def is_current(state_dir: Path, authority: x509.Certificate) -> bool:
    """Whether the file is there and holds a list that this CA has signed. Raises ``CertificateError``."""
    path = state_dir / CRL
    return path.exists() and any(is_list_of(item, authority) for item in _read(path))


def follow(state_dir: Path, authority: x509.Certificate, key: keys.PrivateKey, *, now: datetime) -> None:
    """Write the list of a CA that has replaced another one. Raises ``CertificateError``.

    An unreadable file is left alone.
    """
    path = state_dir / CRL
    if not path.exists() and not (state_dir / index.INDEX).exists():
        return
    try:
        current = is_current(state_dir, authority)
    except CertificateError:
        return
    if not current:
        write(state_dir, index.read(state_dir), authority, key, now=now)


def write(
    state_dir: Path, issued: Sequence[Issued], authority: x509.Certificate, key: keys.PrivateKey, *, now: datetime
) -> None:
    """Write the revoked ones of ``issued``, numbered one above the last list. Raises ``CertificateError``.

    The list is valid as long as the CA: it is written at changes and not on a schedule, so an earlier end would shut
    everyone out on a quiet day. Entries of the last list that the index lacks stay revoked: an index restored from an
    old copy must let no peer back in.
    """
    last, others = _last(state_dir / CRL, authority, now)
    number = 1 if last is None else last.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number + 1
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(now)
        .next_update(authority.not_valid_after_utc)
        .add_extension(keys.authority_identifier(authority, key), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    dates = {} if last is None else {item.serial_number: item.revocation_date_utc for item in last}
    for entry in issued:
        if entry.not_after <= now:
            dates.pop(int(entry.serial, 16), None)
        elif entry.revoked_at is not None:
            dates[int(entry.serial, 16)] = entry.revoked_at
    for serial, date in dates.items():
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(date).build()
        )
    made = builder.sign(key, keys.signing_hash(key))
    data = b"".join(item.public_bytes(Encoding.PEM) for item in (made, *others))
    files.write_file(state_dir / CRL, data, private=False)


def _last(
    path: Path, authority: x509.Certificate, now: datetime
) -> tuple[x509.CertificateRevocationList | None, list[x509.CertificateRevocationList]]:
    """The last list under the CA's name, signed by any key, and the lists of other CAs that have not ended."""
    if not path.exists():
        return None, []
    try:
        lists = _read(path)
        own = [item for item in lists if item.issuer == authority.subject]
        for item in own:
            item.extensions.get_extension_for_class(x509.CRLNumber)
    except (CertificateError, ValueError, x509.ExtensionNotFound):
        raise CertificateError(
            f"revocation list {path} is damaged; move it away, and it is written anew from the index"
        ) from None
    others = [item for item in lists if item not in own]
    return next(iter(own), None), [
        item for item in others if item.next_update_utc is None or item.next_update_utc > now
    ]


def _read(path: Path) -> list[x509.CertificateRevocationList]:
    return parse_crls(files.read_file(path, "revocation list", limit=MAX_CRL_BYTES), path)[0]
