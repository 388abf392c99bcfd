"""The file ``identity.db`` of the state directory: its schema, its transactions and its errors.

A transaction is on the disk when it returns (``synchronous=FULL``), so that no crash issues twice or forgets a
revocation. Several processes may use the file at once. A file that is damaged, full or read-only is one clear error:
nothing is issued then, and relaying goes on, which needs no more than the CA and ``crl.pem``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from intermediate_server.errors import CertificateError
from intermediate_server.pki import files

FILE = "identity.db"
BUSY = 5.0
"""Seconds to wait for another process that writes."""

VERSION = 1
_SCHEMA = f"""
CREATE TABLE tokens (
    id BLOB PRIMARY KEY CHECK (length(id) = 6),
    secret BLOB NOT NULL CHECK (length(secret) = 32),  -- SHA-256
    pin BLOB NOT NULL CHECK (length(pin) = 32),
    role TEXT NOT NULL CHECK (role IN ('agent', 'connector')),
    services TEXT NOT NULL,                            -- JSON arrays, as dns, uris and networks are
    dns TEXT NOT NULL,
    uris TEXT NOT NULL,
    networks TEXT NOT NULL,
    name TEXT,
    prefix TEXT,
    replaces INTEGER NOT NULL CHECK (replaces IN (0, 1)),
    approve INTEGER NOT NULL CHECK (approve IN (0, 1)),
    lifetime INTEGER NOT NULL CHECK (lifetime > 0),    -- seconds, as every duration and time here
    ephemeral INTEGER CHECK (ephemeral > 0),
    uses INTEGER NOT NULL CHECK (uses > 0),
    used INTEGER NOT NULL CHECK (used BETWEEN 0 AND uses),
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    revoked INTEGER
) STRICT;
CREATE INDEX tokens_expires ON tokens (expires);
CREATE TABLE identities (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('agent', 'connector', 'server')),
    services TEXT NOT NULL,                            -- of its next certificate
    dns TEXT NOT NULL,
    uris TEXT NOT NULL,
    lifetime INTEGER NOT NULL CHECK (lifetime > 0),
    ephemeral INTEGER CHECK (ephemeral > 0),
    token BLOB,
    created INTEGER NOT NULL,
    seen INTEGER NOT NULL,                             -- when it was last connected
    ended INTEGER,
    cause TEXT,
    CHECK ((ended IS NULL) = (cause IS NULL))
) STRICT;
CREATE UNIQUE INDEX identities_name ON identities (name, role) WHERE ended IS NULL;
CREATE TABLE certificates (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    fingerprint BLOB NOT NULL UNIQUE CHECK (length(fingerprint) = 32),
    identity INTEGER NOT NULL REFERENCES identities (id) ON DELETE CASCADE,
    services TEXT NOT NULL,
    serial TEXT NOT NULL,
    issuer BLOB NOT NULL,                              -- SHA-256 of our CA's certificate or of another's name
    key BLOB NOT NULL,                                 -- SHA-256 of the public key; empty if it is not known
    chain BLOB NOT NULL,                               -- PEM; of the newest of an identity only
    not_before INTEGER NOT NULL,
    not_after INTEGER NOT NULL,
    revoked INTEGER
) STRICT;
CREATE INDEX certificates_identity ON certificates (identity);
CREATE INDEX certificates_serial ON certificates (serial);
CREATE INDEX certificates_end ON certificates (not_after);
CREATE INDEX certificates_revoked ON certificates (revoked) WHERE revoked IS NOT NULL;
CREATE TABLE joins (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    token BLOB NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    key BLOB NOT NULL CHECK (length(key) = 32),        -- SHA-256 of the public key
    host TEXT NOT NULL,
    source TEXT NOT NULL,
    name TEXT NOT NULL,
    serial TEXT NOT NULL,                              -- of the certificate, chosen before it is signed
    state TEXT NOT NULL CHECK (state IN ('pending', 'reserved', 'issued', 'denied')),
    identity INTEGER REFERENCES identities (id) ON DELETE SET NULL,
    asked INTEGER NOT NULL,
    UNIQUE (token, key)
) STRICT;
CREATE INDEX joins_name ON joins (name);
PRAGMA user_version = {VERSION};
"""


class StoreError(CertificateError):
    """``identity.db`` cannot be used: nothing is issued, renewed or joined until the remedy of the text."""


class Database:
    """The file, opened when it is first needed, and anew once another has taken its place: a repair needs no restart.

    May be used from several threads, one transaction at a time. All methods raise ``StoreError``.
    """

    def __init__(self, state_dir: Path | str, *, readonly: bool = False) -> None:
        self.directory = Path(state_dir)
        self.path = self.directory / FILE
        self._readonly = readonly
        self._one = threading.RLock()
        self._depth = 0
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    def close(self) -> None:
        """Close the file."""
        with self._one:
            if self._db is not None:
                self._db.close()
                self._db = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All statements within are kept together or not at all; a transaction in another one is a part of it."""
        with self._one, self._telling():
            db = self._opened()
            if self._depth == 0:
                db.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield db
                if self._depth == 1:
                    db.execute("COMMIT")
            except BaseException:
                if self._depth == 1:
                    with contextlib.suppress(sqlite3.Error):
                        db.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """For statements that only read."""
        with self._one, self._telling():
            yield self._opened()

    def is_made(self) -> bool:
        """Whether it has its tables; a file that another process has just begun has none."""
        with self.reading() as db:
            return _version(db) != 0

    def damaged(self, reason: object) -> StoreError:
        """The error for content that makes no sense."""
        return StoreError(
            f"{self.path} is damaged ({reason}); put a backup in its place, or move it away to begin with an empty "
            "one; until then nothing is issued and renewed, and the relay relays as before"
        )

    def take_over(self) -> None:
        """Called once the file is open, before anything is read from it."""

    def _opened(self) -> sqlite3.Connection:
        if self._db is not None and (self._depth > 0 or self._file == _identity(self.path)):
            return self._db
        self.close()
        if not self._readonly:
            self._make_file()
        db = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={'ro' if self._readonly else 'rw'}",
            uri=True,
            timeout=BUSY,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._file = _identity(self.path)
            self._check(db)
            self._db = db
            if not self._readonly:
                self.take_over()
        except BaseException:
            self._db = None
            db.close()
            raise
        return db

    def _make_file(self) -> None:
        """Make the file with its mode, where there is none; SQLite would make it with the umask's.

        One that exists must not be opened and closed here: that ends all locks of this process on it (POSIX), also
        those of another ``Database``, and the next program to close it would delete the write-ahead log.
        """
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            if stat.S_ISREG(self.path.lstat().st_mode):
                return
            raise OSError(errno.EEXIST, "it is no ordinary file") from None
        try:
            files.give_to_owner(descriptor, self.directory)
        finally:
            os.close(descriptor)

    def _check(self, db: sqlite3.Connection) -> None:
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA foreign_keys = ON")
        if not self._readonly:
            _use_wal(db)
            db.execute("PRAGMA synchronous = FULL")
        if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("its pages do not fit together")
        if not self._readonly and _version(db) == 0:
            _make(db)
        version = _version(db)
        if version != VERSION and not (self._readonly and version == 0):
            raise StoreError(f"{self.path} is of a newer version; upgrade intermediate-server on this host")

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Errors of SQLite as ``StoreError`` with the remedy."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if _is_busy(error):
                raise StoreError(f"another program has held {self.path} for {BUSY:g} s; try again") from error
            raise StoreError(
                f"{self.path} cannot be used: {error}; make room on the disk, or run as the owner of {self.directory}"
            ) from error
        except sqlite3.IntegrityError as error:
            raise StoreError(f"{self.path} takes no such entry ({error}); try again") from error
        except sqlite3.DatabaseError as error:
            raise self.damaged(error) from error
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be opened: {error.strerror or error}; run as the owner of {self.directory}"
            ) from error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _use_wal(db: sqlite3.Connection) -> None:
    """Keep a write-ahead log. SQLite itself does not wait for another process that is just about to do the same."""
    end = time.monotonic() + BUSY
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() >= end:
                raise
        time.sleep(0.01)


def _is_busy(error: sqlite3.OperationalError) -> bool:
    """Whether another process holds the file; the code's upper bits say more of the case."""
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _make(db: sqlite3.Connection) -> None:
    """Make the tables, unless another process has made them meanwhile."""
    db.execute("BEGIN IMMEDIATE")
    try:
        if _version(db) == 0:
            for statement in _SCHEMA.split(";\n"):
                db.execute(statement)
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def seconds(moment: datetime) -> int:
    """A moment as the database has it."""
    return int(moment.timestamp())


def moment(value: int) -> datetime:
    """A moment from the database, aware UTC. Raises ``ValueError``."""
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OverflowError, OSError):
        raise ValueError("a time out of range") from None


def texts(values: Iterable[str]) -> str:
    """Texts as the database has them."""
    return json.dumps(list(values))


def read_texts(value: str) -> tuple[str, ...]:
    """Texts from the database."""
    return tuple(map(str, json.loads(value)))
