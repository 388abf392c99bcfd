"""Identities and their certificates in ``identity.db``: who was issued what, until when, and what is revoked."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

from cryptography import x509

from intermediate_server.pki import issued_json, keys
from intermediate_server.pki.database import FILE, Database, moment, read_texts, seconds, texts
from intermediate_server.pki.names import role_of, role_word
from intermediate_server.types import Role

SERVER: Final = "server"
"""In place of a role: the holder is a relay."""
KEPT = timedelta(days=90)
"""How long what has expired is kept."""

Cause = Literal["revoked", "left", "replaced", "ephemeral"]
"""Why an identity has ended."""

_ROWS = """
SELECT c.*, i.name, i.role, i.dns, i.uris, i.lifetime, i.ephemeral, i.token, i.seen, i.ended, i.cause
FROM certificates AS c JOIN identities AS i ON i.id = c.identity
"""


@dataclass(frozen=True, slots=True)
class Issued:
    """One issued certificate and its holder."""

    name: str
    role: Role | Literal["server"]
    services: tuple[str, ...]
    """Lower-case service names, or ``*``."""
    serial: str
    """Hexadecimal, lower-case."""
    fingerprint: str
    """SHA-256 of the certificate, lower-case hex."""
    not_before: datetime
    not_after: datetime
    """Validity, aware UTC."""
    revoked_at: datetime | None
    """The moment of its revocation, aware UTC; None while it is valid."""
    identity: int
    """The holder, which keeps it over renewals."""
    issuer: bytes
    """SHA-256 of the CA's certificate, or of the name of a CA elsewhere, 32 bytes; empty for what an earlier version
    issued."""
    key: bytes
    """SHA-256 of the SubjectPublicKeyInfo, 32 bytes; empty as above."""
    dns: tuple[str, ...]
    uris: tuple[str, ...]
    """Further names of the holder's certificates, for rules."""
    lifetime: timedelta
    """Of the holder's next certificate."""
    ephemeral: timedelta | None
    """The holder ends when it was not connected for so long."""
    token: bytes | None
    """The id of the token that it joined by."""
    seen_at: datetime
    """When the holder was last connected, or was made."""
    ended_at: datetime | None
    """When the holder ended: it may not renew. None while it may."""
    cause: Cause | None
    chain: bytes = field(repr=False)
    """The chain as PEM, leaf first; empty where the holder has a newer one."""

    @property
    def holder(self) -> str:
        """The role as a word."""
        return role_word(self.role)

    def is_live(self, now: datetime) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and now < self.not_after


class Store(Database):
    """Identities and their certificates in ``identity.db``. All methods raise ``StoreError``."""

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def entries(self) -> list[Issued]:
        """Everything issued and kept, oldest first."""
        return self.select()

    def select(self, where: str = "1", *values: object) -> list[Issued]:
        """Issued certificates, oldest first. ``where`` is SQL over ``certificates`` c and ``identities`` i."""
        with self.reading() as db:
            rows = db.execute(f"{_ROWS} WHERE {where} ORDER BY c.id", values).fetchall()
        try:
            return list(map(_issued, rows))
        except (ValueError, TypeError, OverflowError) as error:
            raise self.damaged(error) from error

    def by_fingerprint(self, fingerprint: bytes) -> Issued | None:
        """The certificate with this SHA-256."""
        return next(iter(self.select("c.fingerprint = ?", fingerprint)), None)

    def newest(self, identity: int) -> Issued | None:
        """The newest certificate of an identity."""
        return next(iter(self.select("c.id = (SELECT max(id) FROM certificates WHERE identity = ?)", identity)), None)

    def revoked(self) -> list[Issued]:
        """The revoked certificates that are kept."""
        return self.select("c.revoked IS NOT NULL")

    def holder_of_name(self, name: str, role: Role | Literal["server"]) -> int | None:
        """The identity that has a name in a role now, also when its certificates have expired."""
        with self.reading() as db:
            row = db.execute(
                "SELECT id FROM identities WHERE name = ? AND role = ? AND ended IS NULL", (name, role_word(role))
            ).fetchone()
            return None if row is None else int(row["id"])

    def add_identity(
        self,
        name: str,
        role: Role | Literal["server"],
        *,
        services: Sequence[str],
        lifetime: timedelta,
        now: datetime,
        dns: Sequence[str] = (),
        uris: Sequence[str] = (),
        ephemeral: timedelta | None = None,
        token: bytes | None = None,
    ) -> int:
        """A new identity; its name must be free."""
        with self.transaction() as db:
            row = db.execute(
                "INSERT INTO identities (name, role, services, dns, uris, lifetime, ephemeral, token, created, seen) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
                (
                    name,
                    role_word(role),
                    texts(services),
                    texts(dns),
                    texts(uris),
                    int(lifetime.total_seconds()),
                    None if ephemeral is None else int(ephemeral.total_seconds()),
                    token,
                    seconds(now),
                    seconds(now),
                ),
            ).fetchone()
            return int(row["id"])

    def add_certificate(
        self, identity: int, chain: Sequence[x509.Certificate], *, services: Sequence[str], issuer: bytes
    ) -> Issued:
        """Record a certificate, leaf first in ``chain``; from here on it can be revoked."""
        leaf = chain[0]
        fingerprint = leaf.fingerprint(keys.SHA256)
        with self.transaction() as db:
            db.execute("UPDATE certificates SET chain = x'' WHERE identity = ?", (identity,))
            db.execute("UPDATE identities SET services = ? WHERE id = ?", (texts(services), identity))
            db.execute(
                "INSERT INTO certificates (fingerprint, identity, services, serial, issuer, key, chain, not_before, "
                "not_after) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    fingerprint,
                    identity,
                    texts(services),
                    f"{leaf.serial_number:x}",
                    issuer,
                    keys.key_hash(leaf.public_key()),
                    keys.certificate_pem(*chain),
                    seconds(leaf.not_valid_before_utc),
                    seconds(leaf.not_valid_after_utc),
                ),
            )
            return self.select("c.fingerprint = ?", fingerprint)[0]

    def revoke(self, fingerprints: Iterable[str], *, now: datetime) -> None:
        """Mark certificates as revoked; the first moment stays."""
        with self.transaction() as db:
            db.executemany(
                "UPDATE certificates SET revoked = coalesce(revoked, ?) WHERE fingerprint = ?",
                [(seconds(now), bytes.fromhex(item)) for item in fingerprints],
            )

    def end(self, identity: int, cause: Cause, *, now: datetime) -> list[Issued]:
        """End an identity and revoke its certificates; returns those that were live."""
        with self.transaction() as db:
            db.execute(
                "UPDATE identities SET ended = coalesce(ended, ?), cause = coalesce(cause, ?) WHERE id = ?",
                (seconds(now), cause, identity),
            )
            live = [item for item in self.select("c.identity = ?", identity) if item.is_live(now)]
            self.revoke([item.fingerprint for item in live], now=now)
        return live

    def touch(self, identities: Iterable[int], *, now: datetime) -> None:
        """Note that these identities are connected now."""
        with self.transaction() as db:
            db.executemany("UPDATE identities SET seen = ? WHERE id = ?", [(seconds(now), each) for each in identities])

    def idle(self, now: datetime) -> list[Issued]:
        """The newest certificate of each ephemeral identity that was not connected for as long as it may be."""
        return self.select(
            "i.ended IS NULL AND i.ephemeral IS NOT NULL AND i.seen + i.ephemeral <= ? "
            "AND c.id = (SELECT max(id) FROM certificates WHERE identity = i.id)",
            seconds(now),
        )

    def ephemeral(self) -> list[Issued]:
        """Every certificate of the ephemeral identities that have not ended."""
        return self.select("i.ended IS NULL AND i.ephemeral IS NOT NULL")

    def states(self, now: datetime) -> dict[str, int]:
        """How many identities of clients there are in each state: ``live``, ``expired`` and ``ended``."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT CASE WHEN i.ended IS NOT NULL THEN 'ended' WHEN EXISTS (SELECT 1 FROM certificates AS c WHERE "
                "c.identity = i.id AND c.revoked IS NULL AND c.not_after > ?) THEN 'live' ELSE 'expired' END AS state, "
                "count(*) AS number FROM identities AS i WHERE i.role != 'server' GROUP BY state",
                (seconds(now),),
            ).fetchall()
        return {"live": 0, "expired": 0, "ended": 0} | {row["state"]: row["number"] for row in rows}

    def expired(self, now: datetime) -> list[Issued]:
        """The certificates that :meth:`purge` drops: expired for 90 days."""
        return self.select("c.not_after < ?", seconds(now - KEPT))

    def purge(self, *, now: datetime) -> None:
        """Drop what has been expired for 90 days: certificates, identities without any, tokens and their joins."""
        limit = seconds(now - KEPT)
        with self.transaction() as db:
            db.execute("DELETE FROM certificates WHERE not_after < ?", (limit,))
            db.execute(
                "DELETE FROM identities WHERE created < ? AND NOT EXISTS (SELECT 1 FROM certificates WHERE "
                "identity = identities.id)",
                (limit,),
            )
            db.execute("DELETE FROM tokens WHERE expires < ?", (limit,))

    def take_over(self) -> None:
        """Take over ``issued.json`` of an earlier version; what is here stays as it is, but for its revocation."""
        old = self.directory / issued_json.INDEX
        if not old.exists():
            return
        entries = issued_json.read(self.directory)
        with self.transaction() as db:
            for entry in entries:
                self._import(db, entry)
            for entry in {(item.name, item.role): item for item in entries}.values():
                if entry.revoked_at is not None:
                    db.execute(
                        "UPDATE identities SET ended = ?, cause = 'revoked' WHERE ended IS NULL AND id = "
                        "(SELECT identity FROM certificates WHERE fingerprint = ?)",
                        (seconds(entry.revoked_at), entry.fingerprint),
                    )
        with contextlib.suppress(FileNotFoundError):  # another process did the same
            old.replace(old.with_name(f"{issued_json.INDEX}.imported"))

    def _import(self, db: sqlite3.Connection, entry: issued_json.Entry) -> None:
        revoked = None if entry.revoked_at is None else seconds(entry.revoked_at)
        if self.by_fingerprint(entry.fingerprint) is not None:
            db.execute(
                "UPDATE certificates SET revoked = coalesce(revoked, ?) WHERE fingerprint = ?",
                (revoked, entry.fingerprint),
            )
            return
        holder = self.holder_of_name(entry.name, entry.role)
        if holder is None:
            lifetime = max(entry.not_after - entry.not_before - keys.BACKDATE, keys.BACKDATE)
            holder = self.add_identity(
                entry.name, entry.role, services=entry.services, lifetime=lifetime, now=entry.not_before
            )
        db.execute("UPDATE identities SET services = ? WHERE id = ?", (texts(entry.services), holder))
        db.execute(
            "INSERT INTO certificates (fingerprint, identity, services, serial, issuer, key, chain, not_before, "
            "not_after, revoked) VALUES (?, ?, ?, ?, x'', x'', x'', ?, ?, ?)",
            (
                entry.fingerprint,
                holder,
                texts(entry.services),
                entry.serial,
                seconds(entry.not_before),
                seconds(entry.not_after),
                revoked,
            ),
        )


def revoked_now(state_dir: Path, now: datetime) -> list[str]:
    """The serials of revoked certificates that have not expired; makes no file. Raises ``CertificateError``."""
    found = [entry.serial for entry in issued_json.read(state_dir) if entry.revoked_at and entry.not_after > now]
    if (state_dir / FILE).exists():
        with Store(state_dir, readonly=True) as store:
            if store.is_made():
                found += [entry.serial for entry in store.revoked() if entry.not_after > now]
    return found


def _issued(row: Any) -> Issued:
    def optional(name: str) -> datetime | None:
        return None if row[name] is None else moment(row[name])

    return Issued(
        name=row["name"],
        role=role_of(row["role"]),
        services=read_texts(row["services"]),
        serial=row["serial"],
        fingerprint=row["fingerprint"].hex(),
        not_before=moment(row["not_before"]),
        not_after=moment(row["not_after"]),
        revoked_at=optional("revoked"),
        identity=row["identity"],
        issuer=row["issuer"],
        key=row["key"],
        dns=read_texts(row["dns"]),
        uris=read_texts(row["uris"]),
        lifetime=timedelta(seconds=row["lifetime"]),
        ephemeral=None if row["ephemeral"] is None else timedelta(seconds=row["ephemeral"]),
        token=row["token"],
        seen_at=moment(row["seen"]),
        ended_at=optional("ended"),
        cause=row["cause"],
        chain=row["chain"],
    )
