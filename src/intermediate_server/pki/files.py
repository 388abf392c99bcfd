"""The state directory: files are written whole, private ones for their owner only, one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from intermediate_server.errors import CertificateError

MAX_FILE_BYTES = 4 << 20
"""Bundles of every public CA are about 250 kB; a larger file is a mistake or an attack."""

_log = logging.getLogger(__name__)


def prepare_directory(path: Path) -> None:
    """Make a directory of mode 0700 if it is missing. Raises ``CertificateError``.

    An existing one is kept as it is. It must not be writable by others, who could replace the CA and let anyone in.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = path.stat().st_mode
    except OSError as error:
        raise CertificateError(
            f"state directory {path} cannot be made: {_reason(error)}; name another with --state-dir"
        ) from error
    if mode & stat.S_IWOTH:
        raise CertificateError(f"state directory {path} can be written to by everyone; run: chmod o-w {path}")


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, so that two processes starting at once do not both make its keys.

    The kernel gives the lock up when a process dies, so a crash leaves nothing to clean. Raises ``CertificateError``.
    """
    prepare_directory(directory)
    path = directory / ".lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        give_to_owner(descriptor, directory)
    except OSError as error:
        raise CertificateError(
            f"state directory {directory} cannot be written: {_reason(error)}; name another with --state-dir"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes, *, private: bool) -> None:
    """Replace a file by one rename, so that a reader or a crash sees all of the old or all of the new.

    Mode 0600 if ``private``, else 0644. Raises ``CertificateError``, also for a device or a pipe, which a rename would
    replace.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    mode = 0o600 if private else 0o644
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is no ordinary file")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                give_to_owner(file.fileno(), path.parent)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise CertificateError(f"{path} cannot be written: {_reason(error)}") from error


def give_to_owner(descriptor: int, directory: Path) -> None:
    """Let a file that root makes belong to the owner of its directory: the server may run as that user."""
    if os.geteuid() == 0:
        status = directory.stat()
        if status.st_uid != 0 and not status.st_mode & stat.S_IWOTH:
            os.fchown(descriptor, status.st_uid, status.st_gid)


def read_file(path: Path | str, what: str, *, limit: int = MAX_FILE_BYTES) -> bytes:
    """A file's bytes, at most ``limit``; ``what`` names it in errors ("certificate file").

    Raises ``CertificateError``.
    """
    return _read(path, what, limit=limit)


def read_private_file(path: Path | str, what: str, *, readable: bool = False, limit: int = MAX_FILE_BYTES) -> bytes:
    """As ``read_file``, for a secret: refuses one that everyone may read, and warns of one that its group may read.

    A group may have a reason (a key shared with a renewal service). ``readable`` takes a file that everyone may read,
    as volumes of secrets in containers hold them, with a warning.
    """

    def check(status: os.stat_result) -> None:
        _check_mode(Path(path), what, status, readable=readable)

    return _read(path, what, limit=limit, check=check)


def _read(
    path: Path | str, what: str, *, limit: int = MAX_FILE_BYTES, check: Callable[[os.stat_result], None] | None = None
) -> bytes:
    try:
        with Path(path).open("rb") as file:
            if check is not None:
                check(os.fstat(file.fileno()))
            data = file.read(limit + 1)
    except FileNotFoundError:
        remedy = "check the path, or run: intermediate-server pki"
        if _is_credential(Path(path)):
            remedy = (
                f"systemd has handed over no such credential: add LoadCredential={Path(path).name}:FILE to the unit"
            )
        raise CertificateError(f"{what} not found: {path}; {remedy}") from None
    except (OSError, ValueError) as error:
        raise CertificateError(f"{what} {path} cannot be read: {_reason(error)}") from error
    if len(data) > limit:
        raise CertificateError(f"{what} {path} is larger than {limit} bytes; check the path")
    return data


def _check_mode(path: Path, what: str, status: os.stat_result, *, readable: bool) -> None:
    if not stat.S_ISREG(status.st_mode) or _is_credential(path):
        return
    if status.st_mode & stat.S_IROTH:
        if not readable:
            raise CertificateError(
                f"{what} {path} can be read by everyone; run: chmod 600 {path}, or where a volume gives it that mode, "
                "see docs/operation.md"
            )
        _log.warning("%s %s can be read by everyone, as readable-keys allows", what, path)
    elif status.st_mode & stat.S_IRGRP:
        _log.warning("%s %s can be read by its group; if no service needs that, run: chmod 600 %s", what, path, path)


def _is_credential(path: Path) -> bool:
    """Whether systemd handed the file over: only the service may enter the directory, so the files' mode does not
    matter."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(directory) and path.parent == Path(str(directory))


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
