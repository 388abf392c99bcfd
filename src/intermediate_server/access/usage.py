"""Monthly usage: the bytes of each identity in this calendar month (UTC), kept in SQLite over restarts.

Bytes are counted in memory and written every few seconds on another thread, so a crash loses those seconds. An
unreadable file is moved aside, counting starts at zero, and the log and /readyz say so. Usage is about cost and not
about access: to lock out everybody with a limit for the rest of the month would be the worse mistake.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import structlog

from intermediate_server.errors import ConfigError

FILE = "volume.db"
MONTHS_KEPT = 13
"""Months with counts that are kept; a number and not a date, so that a wrong clock deletes no history."""
BUSY = 5.0
"""Seconds to wait for another process that reads the file."""

_IN_MEMORY = Path(":memory:")
"""SQLite's name for a database that no file holds."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS volume (
    month TEXT NOT NULL,     -- 2026-01
    identity TEXT NOT NULL,  -- SHA-256 of the public key, hex
    bytes INTEGER NOT NULL,
    PRIMARY KEY (month, identity)
) WITHOUT ROWID
"""
_OLD = "DELETE FROM volume WHERE month NOT IN (SELECT DISTINCT month FROM volume ORDER BY month DESC LIMIT ?)"
_ADD = "INSERT INTO volume VALUES (?, ?, ?) ON CONFLICT (month, identity) DO UPDATE SET bytes = bytes + excluded.bytes"

_log = structlog.get_logger()


class _NewerFile(Exception):
    """The file is one that this version leaves as it is."""


class MonthlyUsage:
    """The bytes of this month by identity. Belongs to one event loop."""

    def __init__(self, directory: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        """Open or make the file in a state directory, which blocks for the time of a read. Raises ``ConfigError``.

        Without a directory, and beside a file of a newer version, nothing is kept.
        """
        self._path = _IN_MEMORY if directory is None else directory / FILE
        self._clock = clock
        self._month = self._now()
        self._unwritten: dict[tuple[str, str], int] = defaultdict(int)
        self._writing = threading.Lock()
        """One thread at a time has the connection; a write goes on when the task that waits for it is cancelled."""
        self.lost: str | None = None
        """A sentence about counts lost at the start; None when nothing was lost."""
        self.failures = 0
        """Failed writes, which are tried again, and failed reads."""
        self._before: tuple[str, dict[str, int]] = ("", {})
        """The month before and its counts."""
        try:
            self._connection, self._used = self._open()
        except _NewerFile as error:
            self.lost = f"monthly usage of this run is not kept and counts from zero: {self._path} {error}"
            _log.error("Monthly usage is not kept", path=str(self._path), reason=str(error))
            self._path = _IN_MEMORY
            self._connection, self._used = self._open()
        except sqlite3.OperationalError as error:
            # Locked, full or not writable: the content of the file is sound.
            raise ConfigError(f"{self._path} cannot be used: {error}; check --state-dir") from error
        except sqlite3.DatabaseError as error:
            self._move_aside(error)
            try:
                self._connection, self._used = self._open()
            except sqlite3.Error as second:
                raise ConfigError(f"{self._path} cannot be made: {second}; check --state-dir") from second

    def used(self, identity: str) -> int:
        """Bytes of an identity in this month so far."""
        self._roll()
        return self._used.get(identity, 0)

    def add(self, identity: str, count: int) -> None:
        """Count bytes."""
        self._roll()
        self._used[identity] += count
        self._unwritten[self._month, identity] += count

    def month_end(self) -> datetime:
        """When the counts begin anew, aware UTC."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)
        return datetime(year, month, 1, tzinfo=UTC)

    async def save(self) -> None:
        """Write new counts. Never raises: counts that could not be written are kept for the next time."""
        if not self._unwritten:
            return
        batch, self._unwritten = self._unwritten, defaultdict(int)
        try:
            await asyncio.to_thread(self._write, batch)
        except sqlite3.Error as error:
            for key, count in batch.items():
                self._unwritten[key] += count
            self._failed("written", error)

    async def aclose(self) -> None:
        """Write the remaining counts and close the file."""
        await self.save()
        await asyncio.to_thread(self._finish)

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m")

    def _roll(self) -> None:
        month = self._now()
        if month == self._month:
            return
        # The counts before stay in memory: read again, they would lack those still on their way to the file.
        self._month, self._before, self._used = month, (self._month, self._used), self._known(month)

    def _known(self, month: str) -> dict[str, int]:
        """The counts of a month that begins, or to which a clock was set back."""
        if self._before[0] == month:
            return self._before[1]
        used: dict[str, int] = defaultdict(int)
        try:
            with self._writing:
                used.update(self._read(self._connection, month))
        except sqlite3.Error as error:
            self._failed("read", error)
        for (of, identity), count in self._unwritten.items():
            if of == month:
                used[identity] += count
        return used

    @staticmethod
    def _read(connection: sqlite3.Connection, month: str) -> Iterable[tuple[str, int]]:
        return connection.execute("SELECT identity, bytes FROM volume WHERE month = ?", (month,)).fetchall()

    def _failed(self, what: str, error: sqlite3.Error) -> None:
        self.failures += 1
        if self.failures == 1 or self.failures % 100 == 0:
            _log.error(
                f"Monthly usage cannot be {what}; they are kept in memory",
                path=str(self._path),
                reason=str(error),
                failures=self.failures,
            )

    def _open(self) -> tuple[sqlite3.Connection, dict[str, int]]:
        if self._path == _IN_MEMORY:
            return self._connected()
        # SQLite would make it with the umask's mode, and usage is private.
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be opened: {error.strerror}; check --state-dir") from error
        return self._connected()

    def _connected(self) -> tuple[sqlite3.Connection, dict[str, int]]:
        connection = sqlite3.connect(self._path, timeout=BUSY, isolation_level=None, check_same_thread=False)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version:
                raise _NewerFile(f"is of a newer version ({version}); upgrade intermediate-server on this host")
            connection.execute("PRAGMA journal_mode = WAL")
            # A power cut may lose the last seconds, as a crash does; it cannot damage the file.
            connection.execute("PRAGMA synchronous = NORMAL")
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("the file is damaged")
            connection.execute(_SCHEMA)
            return connection, defaultdict(int, self._read(connection, self._month))
        except BaseException:
            connection.close()
            raise

    def _move_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = self._path.with_name(f"{FILE}.damaged-{int(self._clock())}")
        self._path.replace(aside)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self._path.with_name(FILE + suffix).replace(aside.with_name(aside.name + suffix))
        self.lost = f"monthly usage could not be read ({error}) and count from zero; the file is now {aside}"
        _log.error("Monthly usage is lost", path=str(self._path), reason=str(error), moved_to=str(aside))

    def _finish(self) -> None:
        with self._writing:
            self._connection.close()

    def _write(self, batch: Mapping[tuple[str, str], int]) -> None:
        with self._writing:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(_ADD, [(*key, count) for key, count in batch.items()])
                self._connection.execute(_OLD, (MONTHS_KEPT,))
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise
