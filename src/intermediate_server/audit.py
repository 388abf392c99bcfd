"""The audit log: one JSON line for every decision about access, appended to a file or to standard output.

The event loop only adds a line to a buffer; a thread writes. A disk that is full or slow costs lines, which are
counted, and never the relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import structlog

from intermediate_server.errors import ConfigError
from intermediate_server.types import Address, Identity, Peer, Role

STANDARD_OUTPUT = Path("-")
FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
"""Without O_NONBLOCK a pipe without a reader would hold up the start."""
DELAY = 0.05
"""Seconds for which lines are gathered before a write."""
MAX_WAITING = 8 << 20
"""Characters that may wait for a write; lines beyond are lost and counted."""
MAX_NAMES = 16
"""Most names of a certificate in a line; the line has their count, too."""
NOTHING: Mapping[str, object] = {}
COMPLAIN_EVERY = 60.0
"""Seconds between two log lines about an audit log that cannot be written."""

_log = structlog.get_logger()


def open_audit(path: Path) -> int:
    """The file descriptor of an audit log, made with mode 0600 if missing. Raises ``ConfigError``."""
    _check_output(path)
    try:
        return os.dup(1) if path == STANDARD_OUTPUT else os.open(path, FLAGS | os.O_CREAT, 0o600)
    except OSError as error:
        raise _cannot_be_opened(path, error) from None


def check_audit(path: Path | None, state_dir: Path) -> None:
    """Find out whether an audit log could be opened, and make none. Raises ``ConfigError``.

    ``state_dir`` may be missing: the server makes it at its start.
    """
    if path is None or (path.parent.absolute() == state_dir.absolute() and not state_dir.exists()):
        return
    _check_output(path)
    if path == STANDARD_OUTPUT:
        return
    try:
        try:
            os.close(os.open(path, FLAGS))
        except FileNotFoundError as error:
            path.parent.stat()
            if not os.access(path.parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from error
    except OSError as error:
        raise _cannot_be_opened(path, error) from None


def _check_output(path: Path) -> None:
    """Refuse a standard output that was closed, which the command line replaces by a file that keeps nothing."""
    if path == STANDARD_OUTPUT and getattr(sys.stdout, "name", None) == os.devnull:
        raise ConfigError("audit log -: standard output is closed; name a file with --audit-log")


def _cannot_be_opened(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"audit log {path} cannot be opened: {error.strerror}; check --audit-log")


class Audit:
    """Takes decisions and writes them; without a file it writes nothing."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises ``ConfigError``."""
        self._path = path
        self._file = None if path is None else open_audit(path)
        self._lines: list[str] = []
        self._waiting = 0
        self._writer: asyncio.Task[None] | None = None
        self._torn = False
        """Whether the last line was only written in part."""
        self._next_complaint = 0.0
        self.lost = 0
        """Lines that could not be written."""

    def record(
        self,
        decision: str,
        peer: Peer | Address | None,
        *,
        cause: str,
        role: Role | None = None,
        service: str | None = None,
        rule: str = "",
        reason: str = "",
        lost: Iterable[tuple[Role, str]] | None = None,
        count: int | None = None,
        details: Mapping[str, object] = NOTHING,
    ) -> None:
        """Record one decision: ``allowed``, ``denied`` or ``revoked`` of a registration, ``rejected`` or
        ``disconnected`` of a connection, ``issued``, ``repeated``, ``pending``, ``refused``, ``left`` or ``ended`` of a
        join, a renewal or an identity. ``cause`` is the kind of reason, ``rule`` the rule that decided, ``reason`` its
        sentence, ``details`` are further fields.

        ``peer`` is an address after a failed handshake, None for several peers. ``lost`` are the registrations
        that ended with a connection; ``count`` stands for so many decisions that have no line of their own.
        """
        if self._file is None:
            return
        if self._waiting > MAX_WAITING:
            self.lost += 1
            return
        known = peer if isinstance(peer, Peer) else None
        address = peer if known is None else known.address
        fields: dict[str, object] = {
            "event": "audit",
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "decision": decision,
            "cause": cause,
            "conn": None if known is None else known.conn,
            "address": None if address is None else str(address),
            "role": None if role is None else role.value,
            "service": service,
            "identity": None if known is None else plain_identity(known.identity),
            "rule": rule or None,
            "reason": reason or None,
        }
        fields.update(details)
        if lost is not None:
            fields["lost"] = [{"role": role.value, "service": service} for role, service in lost]
        if count is not None:
            fields["count"] = count
        line = json.dumps(fields)
        self._lines.append(line)
        self._waiting += len(line)
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write_soon())

    def reopen(self, path: Path | None) -> None:
        """Go on in the file that has this name now, as after a rotation. Raises ``ConfigError`` and keeps the old
        one."""
        old = self._file
        self._file = None if path is None else open_audit(path)
        self._path = path
        if old is not None:
            self._close(old)

    async def aclose(self) -> None:
        """Write the waiting lines, within about a second, and close the file."""
        if self._writer is not None:
            await asyncio.wait((self._writer,), timeout=1.0)
        if self._file is not None:
            os.close(self._file)
            self._file = None

    async def _write_soon(self) -> None:
        try:
            while self._lines:
                await asyncio.sleep(DELAY)
                lines, self._lines, self._waiting = self._lines, [], 0
                if self._file is None:
                    continue
                try:
                    # A descriptor of its own: the file may be reopened meanwhile.
                    file = os.dup(self._file)
                except OSError as error:
                    self._failed(error, len(lines))
                else:
                    await asyncio.to_thread(self._write, file, lines)
        finally:
            self._writer = None

    def _write(self, file: int, lines: list[str]) -> None:
        """Write on another thread; counts the lost lines."""
        data = "".join(f"{line}\n" for line in lines).encode()
        done = 0
        if self._torn:
            data = b"\n" + data
        try:
            while done < len(data):
                done += os.write(file, data[done:])
        except OSError as error:
            whole = data[:done].count(b"\n") - self._torn
            self._failed(error, len(lines) - max(0, whole))
        finally:
            if done:
                self._torn = not data[:done].endswith(b"\n")
            self._close(file)

    def _failed(self, error: OSError, lines: int) -> None:
        self.lost += lines
        now = time.monotonic()
        if now >= self._next_complaint:
            self._next_complaint = now + COMPLAIN_EVERY
            _log.error("Audit log cannot be written", path=str(self._path), reason=error.strerror, lost=self.lost)

    @staticmethod
    def _close(file: int) -> None:
        with contextlib.suppress(OSError):
            os.close(file)


def who(peer: Peer) -> dict[str, object]:
    """The fields of a peer for a line of the ordinary log."""
    return {"peer": str(peer.address), **named(peer)}


def named(peer: Peer) -> dict[str, object]:
    """The fields of a peer for a line that has its address already."""
    if peer.identity is None:
        return {"conn": peer.conn, "identity": "anonymous"}
    return {"conn": peer.conn, "identity": peer.identity.fingerprint, "subject": peer.identity.subject}


def plain_identity(identity: Identity | None) -> dict[str, object] | None:
    """An identity for JSON, None without one."""
    if identity is None:
        return None
    names = (*identity.dns_names, *identity.uris)
    return {
        "fingerprint": identity.fingerprint,
        "subject": identity.subject,
        "names": names[:MAX_NAMES],
        "name_count": len(names),
    }
