"""``denied.txt`` of the state directory: certificates of other CAs that were revoked here, by SHA-256 fingerprint.

It has the form of ``deny-list`` and is always read beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from intermediate_server.errors import CertificateError
from intermediate_server.pki import files, keys
from intermediate_server.pki.names import fingerprint_of

FILE = "denied.txt"


def deny(state_dir: Path, which: str, *, now: datetime | None = None) -> str:
    """Refuse a certificate of another CA by its SHA-256 fingerprint, which is returned. Raises ``CertificateError``.

    It is refused for as long as the file has it.
    """
    fingerprint = fingerprint_of(which)
    if fingerprint is None:
        raise CertificateError(
            f"{which[:64]!r} was not issued here; give the SHA-256 fingerprint of its certificate, as the status page, "
            "the audit log and pki show print it"
        )
    with files.locked(state_dir):
        add(state_dir, [(fingerprint, "")], now=now or keys.utc_now())
    return fingerprint


def add(state_dir: Path, entries: Sequence[tuple[str, str]], *, now: datetime) -> None:
    """Add fingerprints, each with a remark; the caller holds the directory's lock. Raises ``CertificateError``.

    What the file holds stays as it is.
    """
    path = state_dir / FILE
    data = files.read_file(path, "deny list") if path.exists() else b""
    new = [(each, remark) for each, remark in entries if each.encode() not in data]
    if not new:
        return
    if data and not data.endswith(b"\n"):
        data += b"\n"
    lines = (f"{each}  # {remark + ', ' if remark else ''}revoked {now:%Y-%m-%d %H:%M} UTC\n" for each, remark in new)
    files.write_file(path, data + "".join(lines).encode(), private=False)
