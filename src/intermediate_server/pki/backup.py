"""A backup: what a state directory needs to go on elsewhere, as it is at one moment, in one archive."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tarfile
import tempfile
from pathlib import Path

from intermediate_server.errors import CertificateError
from intermediate_server.pki import crl, denied, development, files
from intermediate_server.pki.authority import ISSUED
from intermediate_server.pki.database import BUSY, FILE

DATABASES = (FILE, "addresses.db", "volume.db")
FILES = (
    development.CA_CERTIFICATE,
    development.CA_KEY,
    development.CA_NEXT_KEY,
    development.CA_OLD_KEY,
    development.SERVER_CERTIFICATE,
    development.SERVER_KEY,
    development.RETRY_KEY,
    development.RESET_KEY,
    crl.CRL,
    denied.FILE,
)


def write_backup(state_dir: Path, path: Path) -> list[str]:
    """Write a tar archive of mode 0600, which must not exist; returns the names in it. Raises ``CertificateError``."""
    if not state_dir.is_dir():
        raise CertificateError(f"state directory {state_dir} not found; name it with --state-dir")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise CertificateError(f"{path} exists; name a new file") from None
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file, files.locked(state_dir):
            names = _fill(state_dir, file)
            file.flush()
            os.fsync(file.fileno())
        return names
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _not_written(path, error) from error
        raise


def _not_written(path: Path, error: OSError) -> CertificateError:
    return CertificateError(f"{path} cannot be written: {error.strerror or error}; name a file in another directory")


def _fill(state_dir: Path, file: object) -> list[str]:
    names = []
    with (
        tempfile.TemporaryDirectory(dir=state_dir, prefix=".backup.") as scratch,
        tarfile.open(fileobj=file, mode="w") as archive,  # type: ignore[call-overload]  # a file opened for writing
    ):
        for name in DATABASES:
            if (state_dir / name).exists():
                copy = Path(scratch) / name
                _copy(state_dir / name, copy)
                copy.chmod(0o600)
                archive.add(copy, name)
                names.append(name)
        issued = sorted((state_dir / ISSUED).glob("*"))
        for each in (*(state_dir / name for name in FILES), *issued):
            if each.is_file():
                name = str(each.relative_to(state_dir))
                archive.add(each, name)
                names.append(name)
    return names


def _copy(path: Path, to: Path) -> None:
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY, isolation_level=None)
        ) as db:
            db.execute("VACUUM INTO ?", (str(to),))
    except sqlite3.Error as error:
        raise CertificateError(f"{path} cannot be copied: {error}; move it away to back up the rest") from error
