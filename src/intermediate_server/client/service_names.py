"""Names of services in a hosts file, for as long as the interface of an agent exists."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog

DOMAIN = "ztna"

_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_BEGIN = re.compile(rb"# BEGIN intermediate-server (\S+)\s*")

_log = structlog.get_logger()


@contextmanager
def listed(path: Path, interface: str, addresses: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Give each service the name ``SERVICE.ztna`` in a hosts file until the end of the block.

    A file that cannot be written is a warning. Blocks of agents that were killed go as well: their interfaces are gone.
    """
    lines = []
    for service, found in addresses.items():
        name = f"{service}.{DOMAIN}"
        if _HOST_NAME.fullmatch(name):
            lines += [f"{address} {name}\n".encode() for address in found]
        else:
            _log.warning(f"Service {service!r} gets no name: {name!r} is no host name")

    def stale(other: str) -> bool:
        return other == interface or other not in {name for _, name in socket.if_nameindex()}

    block = [f"# BEGIN intermediate-server {interface}\n".encode(), *lines, _end(interface)]
    try:
        _replace(path, lambda text: _ended(without(text, stale)) + b"".join(block))
    except OSError as error:
        _log.warning(f"Services have no names: {path} cannot be replaced", reason=error.strerror or str(error))
        yield
        return
    try:
        yield
    finally:
        try:
            _replace(path, lambda text: without(text, lambda other: other == interface))
        except OSError as error:
            _log.warning(f"Names of services stay in {path}", reason=error.strerror or str(error))


def without(text: bytes, gone: Callable[[str], bool]) -> bytes:
    """A hosts file without the blocks of interfaces that are ``gone``; a block without an end stays.

    The ends of its lines are any, as an editor may have changed them.
    """
    kept: list[bytes] = []
    lines = text.splitlines(keepends=True)
    bare = [line.rstrip() for line in lines]
    at = 0
    while at < len(lines):
        begin = _BEGIN.fullmatch(lines[at])
        if begin is not None and gone(interface := begin[1].decode(errors="replace")):
            try:
                at = bare.index(_end(interface).rstrip(), at) + 1
            except ValueError:
                pass
            else:
                continue
        kept.append(lines[at])
        at += 1
    return b"".join(kept)


def _end(interface: str) -> bytes:
    return f"# END intermediate-server {interface}\n".encode()


def _ended(text: bytes) -> bytes:
    return text if not text or text.endswith(b"\n") else text + b"\n"


def _replace(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Replace a file whole, with its mode, owner and attributes; one program of ours at a time. Raises ``OSError``."""
    path = path.resolve(strict=True)
    if not path.is_file():
        raise OSError(errno.EINVAL, "it is no ordinary file")
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        before = path.read_bytes()
        after = change(before)
        if after == before:
            return
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(after)
                owner = path.stat()
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                shutil.copystat(path, name)
                file.flush()
                os.fsync(file.fileno())
            os.utime(name)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        os.fsync(directory)
    finally:
        os.close(directory)
