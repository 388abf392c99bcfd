"""Reserved inner addresses of identities, kept in SQLite over restarts: first come, for good.

The engine reserves addresses for an identity and reports them each time the identity comes. They are written here at
once, and given to the next engine at its start. An application's rules may know an identity by its address, so a
damaged file is not begun anew: its remains count, no identity gets a new reserved address until an operator has
repaired it, and the relay goes on with unreserved ones. The log and /readyz say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path

import structlog

from intermediate_server.engine import Event

FILE = "addresses.db"
MAX_OWNERS = 262_144
"""The number of identities for which the engine reserves addresses."""
UNUSED = 365
"""Days after which an unused address may be given up, if there is no room for more."""
BUSY = 5.0
"""Seconds to wait for another process that reads the file."""
RETRY = 5.0
"""Seconds until a failed write is tried again."""

_VERSION = 1
_SCHEMA = f"""
CREATE TABLE own (
    address BLOB PRIMARY KEY,  -- 4 or 16 bytes
    identity BLOB NOT NULL,    -- SHA-256 of the public key
    used INTEGER NOT NULL,     -- the last day it was used, in days since 1970
    mark BLOB NOT NULL         -- the beginning of SHA-256 of address and identity
) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
"""
_PUT = """
INSERT INTO own VALUES (?, ?, ?, ?)
ON CONFLICT (address) DO UPDATE SET used = max(used, excluded.used) WHERE identity = excluded.identity
"""
_OLD = "DELETE FROM own WHERE used < (SELECT max(used) FROM own) - ?"

_log = structlog.get_logger()


class Addresses:
    """The reserved addresses of identities. Belongs to one event loop."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open or make the file in a state directory, which blocks for the time of a read. Never raises."""
        self._path = directory / FILE
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._writing = threading.Lock()
        """One thread at a time has the connection; a write goes on when the task that waits for it is cancelled."""
        self._seen: dict[tuple[bytes, bytes], int] = {}
        """The day on which each address and identity was noted last."""
        self._unwritten: dict[tuple[bytes, bytes], int] = {}
        self._wake = asyncio.Event()
        self.known: list[tuple[bytes, bytes]] = []
        """Identities (SHA-256 of the public key) and their addresses, packed."""
        self.in_part = False
        """Whether some may be lost."""
        self.failures = 0
        """Failed writes, which are tried again."""
        self._trouble: str | None = None
        self._load()

    @property
    def trouble(self) -> str | None:
        """The problem, as a sentence with its remedy; None without one."""
        if self._trouble is None and self._unwritten and self.failures:
            return f"{self._path} cannot be written: own inner addresses given since may go to others after a restart"
        return self._trouble

    def note(self, event: Event.ReservedAddresses) -> None:
        """Note the addresses of an identity."""
        if self.in_part:
            return
        day = int(self._clock() // 86_400)
        for text in event.addresses:
            key = ip_address(text).packed, event.identity
            if self._seen.get(key) != day:
                self._seen[key] = self._unwritten[key] = day
                self._wake.set()

    async def run(self) -> None:
        """Save noted addresses, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.save()
            if self._unwritten:
                await asyncio.sleep(RETRY)
                self._wake.set()

    async def save(self) -> None:
        """Write new addresses. Never raises: addresses that could not be written are kept for the next time."""
        if not self._unwritten:
            return
        batch, self._unwritten = self._unwritten, {}
        try:
            await asyncio.to_thread(self._write, batch)
        except (OSError, sqlite3.Error) as error:
            self._unwritten = batch | self._unwritten
            self.failures += 1
            if self.failures == 1 or self.failures % 100 == 0:
                _log.error(
                    "Own inner addresses cannot be written; they are kept in memory",
                    path=str(self._path),
                    reason=str(error),
                    failures=self.failures,
                )

    async def aclose(self) -> None:
        """Write the remaining addresses and close the file."""
        await self.save()
        with self._writing:
            if self._connection is not None:
                self._connection.close()

    # How

    def _load(self) -> None:
        try:
            connection = self._open()
        except (OSError, sqlite3.OperationalError) as error:
            # Full or not writable: the content of the file is sound.
            self._load_read_only(error)
        except sqlite3.Error as error:
            self._salvage(error)
        else:
            try:
                self.known = list(self._read(connection))
                self._make_room(connection)
                self._connection = connection
            except sqlite3.Error as error:
                connection.close()
                self._salvage(error)

    def _load_read_only(self, cause: Exception) -> None:
        if not self._path.exists():
            _log.error("Own inner addresses cannot be kept over a restart", path=str(self._path), reason=str(cause))
            return
        try:
            with contextlib.closing(self._connect("ro")) as connection:
                self.known = list(self._read(connection))
            _log.error("Own inner addresses cannot be written", path=str(self._path), reason=str(cause))
        except (OSError, sqlite3.Error) as error:
            self._salvage(error)

    def _salvage(self, cause: Exception) -> None:
        """Take the readable entries, and leave the file as it is for its operator."""
        self.known, self.in_part = [], True
        # Read without a log beside it: its few changes are not worth the risk.
        with contextlib.suppress(OSError, sqlite3.Error), contextlib.closing(self._connect("ro")) as connection:
            for row in connection.execute("SELECT address, identity, mark FROM own"):
                if _is_sound(row):
                    self.known.append((row[1], row[0]))
        self._trouble = (
            f"{self._path} is damaged ({cause}): no identity is given a new own inner address until it is replaced by "
            "a copy or removed, and after that addresses may go to others"
        )
        _log.error(
            "Own inner addresses are known in part; no new ones are given",
            path=str(self._path),
            reason=str(cause),
            known=len(self.known),
        )

    def _make_room(self, connection: sqlite3.Connection) -> None:
        """Give up addresses unused for a year, if there is no room for more."""
        if len({identity for identity, _ in self.known}) < MAX_OWNERS:
            return
        connection.execute(_OLD, (UNUSED,))
        before, self.known = len(self.known), list(self._read(connection))
        _log.warning("Own inner addresses that were not used for a year are free again", count=before - len(self.known))
        if len({identity for identity, _ in self.known}) >= MAX_OWNERS:
            self._trouble = f"{MAX_OWNERS} identities have own inner addresses, and no other is given one"

    def _connect(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY,
            isolation_level=None,
            check_same_thread=False,
        )

    def _open(self) -> sqlite3.Connection:
        if not self._path.exists():
            self._make()
        connection = self._connect("rw")
        try:
            # The next write would go into an empty one.
            _check_version(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            return connection
        except BaseException:
            connection.close()
            raise

    def _make(self) -> None:
        """Make the file whole or not at all, since an empty one means lost addresses."""
        new = self._path.with_name(f"{FILE}.new")
        new.unlink(missing_ok=True)
        # SQLite would make it with the umask's mode, and the addresses are private.
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
            connection.executescript(_SCHEMA)
        new.replace(self._path)

    @staticmethod
    def _read(connection: sqlite3.Connection) -> Iterator[tuple[bytes, bytes]]:
        """Every identity and address. Raises ``sqlite3.DatabaseError`` for a damaged entry."""
        _check_version(connection)
        if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("its pages do not fit together")
        for row in connection.execute("SELECT address, identity, mark FROM own"):
            if not _is_sound(row):
                raise sqlite3.DatabaseError("an entry is not as it was written")
            yield row[1], row[0]

    def _write(self, batch: Mapping[tuple[bytes, bytes], int]) -> None:
        rows = [(address, identity, day, _mark(address, identity)) for (address, identity), day in batch.items()]
        with self._writing:
            if self._connection is None:
                self._connection = self._open()
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(_PUT, rows)
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise


def _check_version(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != _VERSION:
        newer = f"a newer intermediate-server has written it, in version {version}"
        raise sqlite3.DatabaseError(newer if version else "it is empty")


def _mark(address: bytes, identity: bytes) -> bytes:
    return hashlib.sha256(address + identity).digest()[:8]


def _is_sound(row: tuple[object, object, object]) -> bool:
    """Whether an entry is as it was written."""
    address, identity, mark = row
    if not isinstance(address, bytes) or not isinstance(identity, bytes):
        return False
    return len(address) in (4, 16) and len(identity) == 32 and mark == _mark(address, identity)
