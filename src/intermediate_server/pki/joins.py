"""Tokens, and the joins by them.

A join is two transactions. The first reserves a use of the token for one key, and the name and the serial of the
certificate to come; the second records the certificate, before anybody gets it. A crash between them leaves a
reservation, which only the same key takes up. A join that is asked again with the same key, since its answer was lost,
gets the recorded certificate.
"""

from __future__ import annotations

import hmac
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

from cryptography import x509

from intermediate_server.errors import CertificateError
from intermediate_server.pki import keys
from intermediate_server.pki.authority import Authority
from intermediate_server.pki.database import moment, read_texts, seconds, texts
from intermediate_server.pki.names import name_of_host
from intermediate_server.pki.store import Issued, Store
from intermediate_server.pki.terms import LONGEST_EXPIRY, SHORTEST_EXPIRY, Terms, TokenRow, check_range
from intermediate_server.types import Role

MAX_LIVE = 10_000
"""Tokens that may be used."""
MAX_HOST = 255
"""Characters of a host's name that are kept."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """A use of a token for one key: what to sign."""

    join: int
    """Names the reservation."""
    token: bytes
    """The id of the token."""
    key: bytes
    """SHA-256 of the public key, 32 bytes."""
    name: str
    serial: str
    """Of the certificate to be signed, hexadecimal: the same after a crash."""
    terms: Terms


@dataclass(frozen=True, slots=True)
class Waiting:
    """The join waits for an operator."""

    join: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A join that is refused."""

    cause: str
    """``unknown``, ``expired``, ``used``, ``revoked``, ``source``, ``name`` or ``denied``."""
    sentence: str
    """For the one who joins; it says what to do next."""


@dataclass(frozen=True, slots=True)
class PendingJoin:
    """A join that waits for an operator."""

    join: int
    token: bytes
    role: Role
    services: tuple[str, ...]
    name: str
    host: str
    source: str
    key: bytes
    """SHA-256 of the public key, 32 bytes."""
    asked_at: datetime


_ASK = "ask the relay's operator for a new token"
UNKNOWN = Refusal("unknown", f"the relay does not know this token; {_ASK}")


class Joins:
    """The tokens of a state directory and the joins by them. All methods raise ``CertificateError``."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    # For operators

    def create(
        self,
        token_id: bytes,
        secret_hash: bytes,
        terms: Terms,
        *,
        pin: bytes,
        expires: timedelta,
        now: datetime | None = None,
    ) -> TokenRow:
        """Keep a new token, by the SHA-256 of its secret."""
        now = now or keys.utc_now()
        check_range("--expires", expires, SHORTEST_EXPIRY, LONGEST_EXPIRY)
        with self._authority.opened() as store, store.transaction() as db:
            self._authority.tidy(store, now)
            live = db.execute(
                "SELECT count(*) FROM tokens WHERE expires > ? AND revoked IS NULL AND used < uses", (seconds(now),)
            ).fetchone()[0]
            if live >= MAX_LIVE:
                raise CertificateError(
                    f"{live} tokens may be used, and no more are made; revoke some: intermediate-server token list"
                )
            db.execute(
                "INSERT INTO tokens (id, secret, pin, role, services, dns, uris, networks, name, prefix, replaces, "
                "approve, lifetime, ephemeral, uses, used, created, expires) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?)",
                (
                    token_id,
                    secret_hash,
                    pin,
                    terms.role.value,
                    texts(terms.services),
                    texts(terms.dns),
                    texts(terms.uris),
                    texts(map(str, terms.networks)),
                    terms.name,
                    terms.prefix,
                    terms.replaces,
                    terms.approve,
                    int(terms.lifetime.total_seconds()),
                    None if terms.ephemeral is None else int(terms.ephemeral.total_seconds()),
                    terms.uses,
                    seconds(now),
                    seconds(now + expires),
                ),
            )
            return _token(store, _row(db, token_id))

    def tokens(self) -> list[TokenRow]:
        """Every token that is kept, oldest first."""
        with self._authority.opened() as store, store.reading() as db:
            return [_token(store, row) for row in db.execute("SELECT * FROM tokens ORDER BY created, rowid").fetchall()]

    def token(self, token_id: bytes) -> TokenRow | None:
        """The token with this id."""
        with self._authority.opened() as store, store.reading() as db:
            row = _row(db, token_id)
            return None if row is None else _token(store, row)

    def revoke_token(self, token_id: bytes, *, now: datetime | None = None) -> TokenRow:
        """End a token; who has joined by it stays."""
        with self._authority.opened() as store, store.transaction() as db:
            db.execute(
                "UPDATE tokens SET revoked = coalesce(revoked, ?) WHERE id = ?",
                (seconds(now or keys.utc_now()), token_id),
            )
            row = _row(db, token_id)
            if row is None:
                raise CertificateError(f"there is no token {token_id.hex()}; run: intermediate-server token list")
            return _token(store, row)

    def pending(self, now: datetime | None = None) -> list[PendingJoin]:
        """The joins that wait for an operator, oldest first."""
        with self._authority.opened() as store, store.reading() as db:
            rows = db.execute(
                "SELECT j.*, t.role, t.services FROM joins AS j JOIN tokens AS t ON t.id = j.token "
                "WHERE j.state = 'pending' AND t.revoked IS NULL AND t.expires > ? ORDER BY j.id",
                (seconds(now or keys.utc_now()),),
            ).fetchall()
        return [
            PendingJoin(
                join=row["id"],
                token=row["token"],
                role=Role(row["role"]),
                services=read_texts(row["services"]),
                name=row["name"],
                host=row["host"],
                source=row["source"],
                key=row["key"],
                asked_at=moment(row["asked"]),
            )
            for row in rows
        ]

    def approve(self, join: int, *, now: datetime | None = None) -> PendingJoin:
        """Let a join go on: its client asks again by itself."""
        return self._decide(join, "reserved", now)

    def deny(self, join: int, *, now: datetime | None = None) -> PendingJoin:
        """Refuse a join; the token may be used by another key."""
        return self._decide(join, "denied", now)

    def _decide(self, join: int, state: str, now: datetime | None) -> PendingJoin:
        found = next((item for item in self.pending(now) if item.join == join), None)
        with self._authority.opened() as store, store.transaction() as db:
            changed = db.execute(
                "UPDATE joins SET state = ? WHERE id = ? AND state = 'pending'", (state, join)
            ).rowcount
            if found is None or changed != 1:
                raise CertificateError(f"no join {join} waits; run: intermediate-server token pending")
            if state == "denied":
                db.execute("UPDATE tokens SET used = used - 1 WHERE id = ?", (found.token,))
        return found

    # For the issuer

    def reserve(
        self,
        token_id: bytes,
        secret_hash: bytes,
        key: bytes,
        host: str,
        source: IPv4Address | IPv6Address,
        now: datetime,
    ) -> Reservation | Issued | Waiting | Refusal:
        """Reserve a use of a token for a key; ``key`` and ``secret_hash`` are SHA-256.

        Gives the recorded certificate where the key has joined before. Without the secret the token is not known.
        """
        with self._authority.store_of() as store, store.transaction() as db:
            row = _row(db, token_id)
            known = row["secret"] if row is not None else bytes(32)
            if not hmac.compare_digest(known, secret_hash) or row is None:
                return UNKNOWN
            token = _token(store, row)
            if token.revoked_at is not None:
                return Refusal("revoked", "the token was revoked; ask the relay's operator for a new one")
            if not _is_in(source, token.terms):
                return Refusal(
                    "source", f"the token may not be used from {source}; ask the relay's operator for another"
                )
            join = db.execute("SELECT * FROM joins WHERE token = ? AND key = ?", (token_id, key)).fetchone()
            if join is not None:
                return _again(store, token, join, now)
            if now >= token.expires_at:
                return _expired(token)
            if token.used >= token.terms.uses:
                return Refusal("used", _used(db, token_id))
            name = token.terms.name or name_of_host(host, token.terms.prefix)
            if self._is_taken(store, db, name, token, now):
                return Refusal(
                    "name",
                    f"the name {name!r} is taken; ask the relay's operator for a token with another --name, or with "
                    "--replace to take it over",
                )
            counted = db.execute("UPDATE tokens SET used = used + 1 WHERE id = ? AND used < uses", (token_id,)).rowcount
            if counted != 1:
                return Refusal("used", _used(db, token_id))
            serial = f"{x509.random_serial_number():x}"
            state = "pending" if token.terms.approve else "reserved"
            made = db.execute(
                "INSERT INTO joins (token, key, host, source, name, serial, state, asked) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
                (token_id, key, host[:MAX_HOST], str(source), name, serial, state, seconds(now)),
            ).fetchone()["id"]
            if token.terms.approve:
                return Waiting(made)
            return Reservation(made, token_id, key, name, serial, token.terms)

    def record(
        self, reservation: Reservation, chain: Sequence[x509.Certificate], now: datetime | None = None
    ) -> Issued:
        """Record the certificate of a reservation, leaf first in ``chain``, and end the identity that it replaces.

        From here on it can be revoked, and may be handed out.
        """
        now = now or keys.utc_now()
        terms = reservation.terms
        with self._authority.opened() as store, store.transaction() as db:
            join = db.execute("SELECT * FROM joins WHERE id = ?", (reservation.join,)).fetchone()
            if join is None or join["state"] not in ("reserved", "issued"):
                raise CertificateError("the reservation is gone; join again with a new token")
            if join["state"] == "issued":
                made = store.newest(join["identity"])
                if made is None:
                    raise CertificateError("the certificate is gone; join again with a new token")
                return made
            before = store.holder_of_name(reservation.name, terms.role)
            replaced = [] if before is None else store.end(before, "replaced", now=now)
            if replaced and not terms.replaces:
                raise CertificateError(f"the name {reservation.name!r} was taken meanwhile; join with a new token")
            identity = store.add_identity(
                reservation.name,
                terms.role,
                services=terms.services,
                lifetime=terms.lifetime,
                now=now,
                dns=terms.dns,
                uris=terms.uris,
                ephemeral=terms.ephemeral,
                token=reservation.token,
            )
            made = store.add_certificate(
                identity, chain, services=terms.services, issuer=self._authority.issuer_of(chain[0])
            )
            db.execute("UPDATE joins SET state = 'issued', identity = ? WHERE id = ?", (identity, reservation.join))
            if replaced:
                self._authority.publish(store, replaced, now)
            self._authority.tidy(store, now)
            return made

    @staticmethod
    def _is_taken(store: Store, db: sqlite3.Connection, name: str, token: TokenRow, now: datetime) -> bool:
        """Whether somebody else has the name, or has reserved it."""
        reserved = db.execute(
            "SELECT 1 FROM joins AS j JOIN tokens AS t ON t.id = j.token WHERE j.name = ? AND t.role = ? "
            "AND j.state IN ('reserved', 'pending') AND t.revoked IS NULL AND t.expires > ?",
            (name, token.terms.role.value, seconds(now)),
        ).fetchone()
        if reserved is not None:
            return True
        return not token.terms.replaces and any(
            item.is_live(now)
            for item in store.select("i.name = ? AND i.role = ? AND i.ended IS NULL", name, token.terms.role.value)
        )


def _again(store: Store, token: TokenRow, join: Any, now: datetime) -> Reservation | Issued | Waiting | Refusal:
    """The answer to a key that has asked before."""
    match join["state"]:
        case "reserved":
            # The use is counted: it stays good beyond the end of the token.
            return Reservation(join["id"], token.id, join["key"], join["name"], join["serial"], token.terms)
        case "pending":
            return Waiting(join["id"]) if now < token.expires_at else _expired(token)
        case "denied":
            return Refusal("denied", "the relay's operator has denied this join; ask there why")
    made = None if join["identity"] is None else store.newest(join["identity"])
    if made is None or not made.is_live(now):
        return Refusal("used", f"the certificate of this join has ended; {_ASK}")
    if made.ended_at is not None:
        return Refusal("revoked", f"{made.name} was revoked; {_ASK}")
    return made


def _expired(token: TokenRow) -> Refusal:
    return Refusal("expired", f"the token expired at {_time(token.expires_at)}; {_ASK}")


def _used(db: sqlite3.Connection, token_id: bytes) -> str:
    row = db.execute(
        "SELECT j.name, j.asked FROM joins AS j WHERE j.token = ? AND j.state != 'denied' ORDER BY j.id DESC LIMIT 1",
        (token_id,),
    ).fetchone()
    if row is None:
        return f"the token was used; {_ASK}"
    return f'the token was used by "{row["name"]}" at {_time(moment(row["asked"]))}; {_ASK}'


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _is_in(source: IPv4Address | IPv6Address, terms: Terms) -> bool:
    plain = (source.ipv4_mapped or source) if isinstance(source, IPv6Address) else source
    return not terms.networks or any(plain in network for network in terms.networks)


def _row(db: sqlite3.Connection, token_id: bytes) -> Any:
    return db.execute("SELECT * FROM tokens WHERE id = ?", (token_id,)).fetchone()


def _token(store: Store, row: Any) -> TokenRow:
    try:
        return _read_token(row)
    except (ValueError, TypeError, OverflowError) as error:
        raise store.damaged(error) from error


def _read_token(row: Any) -> TokenRow:
    return TokenRow(
        id=row["id"],
        terms=Terms(
            role=Role(row["role"]),
            services=read_texts(row["services"]),
            lifetime=timedelta(seconds=row["lifetime"]),
            dns=read_texts(row["dns"]),
            uris=read_texts(row["uris"]),
            name=row["name"],
            prefix=row["prefix"] or "",
            replaces=bool(row["replaces"]),
            networks=tuple(map(ip_network, read_texts(row["networks"]))),
            uses=row["uses"],
            approve=bool(row["approve"]),
            ephemeral=None if row["ephemeral"] is None else timedelta(seconds=row["ephemeral"]),
        ),
        pin=row["pin"],
        used=row["used"],
        created_at=moment(row["created"]),
        expires_at=moment(row["expires"]),
        revoked_at=None if row["revoked"] is None else moment(row["revoked"]),
    )
