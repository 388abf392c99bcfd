"""The revocation list of the development CA, ``crl.pem`` of the state directory (RFC 5280 section 5).

The file holds the list of the present CA, of two during a rollover, and behind it the lists of earlier CAs until they
end: a bundle of CAs may still trust one of them. The caller of each writing function holds the directory's lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.errors import CertificateError
from intermediate_server.pki import files, issued_json, keys
from intermediate_server.pki.database import FILE
from intermediate_server.pki.lists import MAX_CRL_BYTES, is_list_of, parse_crls
from intermediate_server.pki.store import Issued, Store

CRL = "crl.pem"

Signer = tuple[x509.Certificate, keys.PrivateKey]
"""A CA that can sign its list."""


def is_current(state_dir: Path, authority: x509.Certificate) -> bool:
    """Whether the file is there and holds a list that this CA has signed. Raises ``CertificateError``."""
    path = state_dir / CRL
    return path.exists() and any(is_list_of(item, authority) for item in _read(path))


def follow(state_dir: Path, authorities: Sequence[Signer], *, now: datetime) -> None:
    """Write the list of a CA that has replaced another one. Raises ``CertificateError``.

    An unreadable file is left alone.
    """
    if not any((state_dir / name).exists() for name in (CRL, FILE, issued_json.INDEX)):
        return
    try:
        current = all(is_current(state_dir, authority) for authority, _ in authorities)
    except CertificateError:
        return
    if not current:
        with Store(state_dir) as store:
            write(state_dir, store.revoked(), authorities, now=now)


def write(state_dir: Path, revoked: Iterable[Issued], authorities: Sequence[Signer], *, now: datetime) -> None:
    """Write the list of each CA, numbered one above its last one. Raises ``CertificateError``.

    A list is valid as long as its CA: it is written at changes and not on a schedule, so an earlier end would shut
    everyone out on a quiet day. Entries of the last list that ``revoked`` lacks stay revoked: an index restored from an
    old copy must let no peer back in. Every list holds the certificates of all CAs: serials are random and long.
    """
    path, revoked = state_dir / CRL, tuple(revoked)
    lists = _lists(path)
    made = [_signed(authority, key, lists, revoked, now) for authority, key in authorities]
    names = {authority.subject for authority, _ in authorities}
    others = [
        item
        for item in lists
        if item.issuer not in names and (item.next_update_utc is None or item.next_update_utc > now)
    ]
    files.write_file(path, b"".join(item.public_bytes(Encoding.PEM) for item in (*made, *others)), private=False)


def _signed(
    authority: x509.Certificate,
    key: keys.PrivateKey,
    lists: Sequence[x509.CertificateRevocationList],
    revoked: Sequence[Issued],
    now: datetime,
) -> x509.CertificateRevocationList:
    last = next((item for item in lists if item.issuer == authority.subject), None)
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
    for entry in revoked:
        if entry.not_after <= now:
            dates.pop(int(entry.serial, 16), None)
        elif entry.revoked_at is not None:
            dates[int(entry.serial, 16)] = entry.revoked_at
    for serial, date in dates.items():
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(date).build()
        )
    return builder.sign(key, keys.signing_hash(key))


def _lists(path: Path) -> list[x509.CertificateRevocationList]:
    """The lists of the file, each with its number; none without the file."""
    if not path.exists():
        return []
    try:
        lists = _read(path)
        for item in lists:
            item.extensions.get_extension_for_class(x509.CRLNumber)
    except (CertificateError, ValueError, x509.ExtensionNotFound):
        raise CertificateError(
            f"revocation list {path} is damaged; move it away, and it is written anew from the index"
        ) from None
    return lists


def _read(path: Path) -> list[x509.CertificateRevocationList]:
    return parse_crls(files.read_file(path, "revocation list", limit=MAX_CRL_BYTES), path)[0]
