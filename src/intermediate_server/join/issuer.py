"""The issuer answers the requests of ``ztna-join/1``: it checks, signs, records, and only then answers.

A join is reserved for its key before it is signed and recorded before it is answered. So a crash at any step leaves
what the same request finishes, and no other. Every method blocks on the disk or on the signer's command.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address

from cryptography import x509

from intermediate_server.errors import CertificateError
from intermediate_server.join import csr
from intermediate_server.join.messages import (
    MAX_SENTENCE,
    Answer,
    Issued,
    Join,
    Leave,
    Left,
    MessageError,
    Pending,
    Refused,
    Renew,
    encode,
    parse_request,
)
from intermediate_server.join.tokens import secret_hash
from intermediate_server.pki import development, keys
from intermediate_server.pki.authority import Authority
from intermediate_server.pki.joins import Joins, Refusal, Reservation, Waiting
from intermediate_server.pki.signer import Signer, SignerError, Wanted
from intermediate_server.pki.store import Issued as Row
from intermediate_server.pki.store import Store
from intermediate_server.types import Role

UNAVAILABLE = "the relay cannot issue certificates now; its log and /readyz say why; ask again later"
SIGNER = "the relay's signer has issued no usable certificate; the relay's log says why; ask again later"

REVOKED = "the certificate is revoked; to come back, join again with a new token of the relay's operator"

RETRY_AFTER = 10.0
"""Seconds after which a join that waits for approval is to be asked for again."""

SETTLE = timedelta(seconds=60)
"""The time after its issue in which a certificate is given again to the same key instead of a newer one."""

Source = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Relay:
    """What answers say about the relay itself."""

    servers: tuple[str, ...]
    server_name: str
    ca_pem: bytes
    """The CAs by which to know it, PEM; two during a rollover."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer, with what logs and counters say about it."""

    request: str
    """``join``, ``renew``, ``late-renew`` or ``leave``; ``unknown`` where it could not be read."""
    result: str
    """``issued``, ``repeated``, ``pending``, ``left``, or the cause of the refusal."""
    data: bytes = field(repr=False)
    """The answer, encoded."""
    reason: str = ""
    """The sentence of a refusal."""
    token: str = ""
    """The id of the join token, hexadecimal."""
    holder: Row | None = None
    """The certificate that was issued, that the request showed, or that ended."""
    ended: tuple[Row, ...] = ()
    """Certificates that were live until now: their connections are to be closed."""
    trouble: str = ""
    """A sentence for the operator about a fault of the relay."""
    guess: bool = False
    """Whether it counts against its source as a failure."""


class Issuer:
    """Answers requests, one at a time; belongs to one thread."""

    def __init__(
        self,
        *,
        store: Store,
        authority: Authority,
        relay: Relay,
        renew_grace: timedelta,
        signer: Signer | None = None,
        denied: Callable[[bytes], str | None] = lambda _: None,
    ) -> None:
        """``renew_grace`` is how long after its end a certificate may be renewed.

        ``signer`` signs in place of the authority's own CA. ``denied`` gives the reason for which a list of revoked
        certificates holds the one with this DER.
        """
        self._store = store
        self._joins = Joins(authority)
        self._authority = authority
        self._relay = relay
        self._renew_grace = renew_grace
        self._signer = signer
        self._denied = denied

    def answer(self, data: bytes, certificate: bytes | None, source: Source, now: datetime) -> Outcome:
        """The answer to a request; never raises for what a client or the disk did.

        ``certificate`` is the leaf that the handshake proved the key of, DER; nothing else about it is proven.
        """
        try:
            request = parse_request(data)
        except MessageError as error:
            return _refused("unknown", "malformed", f"the request {error}; use a current version of the client")
        kind = type(request).__name__.lower()
        token = request.token_id.hex() if isinstance(request, Join) else ""
        try:
            match request:
                case Join():
                    return self._join(request, source, now)
                case Renew():
                    return self._renew(certificate, request.csr, now)
                case Leave():
                    return self._leave(certificate, now)
        except csr.RequestError as error:
            return _refused(kind, error.cause, str(error), token=token)
        except SignerError as error:
            return failed(kind, "signer", SIGNER, str(error), token=token)
        except CertificateError as error:
            return failed(kind, "unavailable", UNAVAILABLE, str(error), token=token)
        except MessageError as error:
            return failed(kind, "unavailable", UNAVAILABLE, f"the answer to a {kind} {error}", token=token)

    def sweep(
        self, connected: frozenset[str], now: datetime, *, may_end: bool
    ) -> tuple[tuple[Row, ...], Mapping[str, int], bool]:
        """End the ephemeral identities that were not connected for as long as they may be.

        ``connected`` are the fingerprints of all certificates that are connected now; with ``may_end`` false none
        ends. Returns the certificates of those that ended, the number of identities by state, and whether there is
        any ephemeral one. Raises ``CertificateError``.
        """
        if self._signer is None:
            # So that the operator knows of a missing key before a device does.
            development.load_authority(self._authority.certificate_path.parent, now=now)
        rows = self._store.ephemeral()
        present = {row.identity for row in rows if row.fingerprint in connected}
        if present:
            self._store.touch(present, now=now)
        ended: list[Row] = []
        for row in self._store.idle(now) if may_end else ():
            ended += [row, *self._authority.end(row.identity, "ephemeral", now=now)]
        return tuple(ended), self._store.states(now), bool(rows)

    def stop(self) -> None:
        """Kill a running signer; may be called on another thread."""
        if self._signer is not None:
            self._signer.stop()

    def _join(self, request: Join, source: Source, now: datetime) -> Outcome:
        signing_request, key = csr.read(request.csr)
        token = request.token_id.hex()
        secret = secret_hash(request.secret)
        found = self._joins.reserve(request.token_id, secret, keys.key_hash(key), request.host, source, now)
        match found:
            case Refusal(cause, sentence):
                return _refused("join", cause, sentence, token=token)
            case Waiting():
                return _outcome("join", "pending", Pending(RETRY_AFTER), token=token)
            case Reservation(name=name, terms=terms):
                wanted = Wanted(name, terms.role, terms.services, terms.dns, terms.uris, terms.lifetime)
                chain = self._sign(signing_request, wanted, now, serial=found.serial)
                return self._issued("join", "issued", self._joins.record(found, chain, now), now)
            case _:
                return self._issued("join", "repeated", found, now)

    def _renew(self, certificate: bytes | None, request: bytes, now: datetime) -> Outcome:
        held = self._held("renew", certificate)
        if isinstance(held, Outcome):
            return held
        der, row, role = held
        if row.revoked_at is not None or row.ended_at is not None or self._denied(der) is not None:
            return _refused("renew", "revoked", REVOKED, holder=row)
        if now >= row.not_after + self._renew_grace:
            ended = f"{row.not_after:%Y-%m-%d %H:%M} UTC"
            sentence = f"the certificate expired at {ended} and may be renewed no more; join again with a new token"
            return _refused("renew", "past-grace", sentence, holder=row)
        kind = "late-renew" if now >= row.not_after else "renew"
        signing_request, key = csr.read(request)
        newest = self._store.newest(row.identity)
        if newest is not None and newest.chain and newest.is_live(now) and now < _settled(newest):
            if newest.key == keys.key_hash(key):
                return self._issued(kind, "repeated", newest, now)
            sentence = f"a certificate was issued to this identity a moment ago; ask again after {SETTLE.seconds} s"
            return _refused(kind, "early", sentence, holder=row, again=True)
        # By the newest: what the one shown says of its services may be out of date.
        holder = newest or row
        wanted = Wanted(holder.name, role, holder.services, holder.dns, holder.uris, holder.lifetime)
        chain = self._sign(signing_request, wanted, now)
        try:
            made = self._authority.renewed(holder, chain, now=now)
        except CertificateError:
            # A revocation wins against a signer that takes its time.
            now_known = self._store.newest(row.identity)
            if now_known is not None and now_known.ended_at is None:
                raise
            return _refused(kind, "revoked", REVOKED, holder=row)
        return self._issued(kind, "issued", made, now)

    def _leave(self, certificate: bytes | None, now: datetime) -> Outcome:
        held = self._held("leave", certificate)
        if isinstance(held, Outcome):
            return held
        der, row, _ = held
        if row.ended_at is not None:
            return _outcome("leave", "left", Left(), holder=row)
        if row.revoked_at is not None or self._denied(der) is not None:
            return _refused("leave", "revoked", "a revoked certificate cannot end its identity", holder=row)
        ended = self._authority.end(row.identity, "left", now=now)
        return _outcome("leave", "left", Left(), holder=row, ended=tuple(ended))

    def _held(self, kind: str, certificate: bytes | None) -> Outcome | tuple[bytes, Row, Role]:
        """The certificate of the handshake with its row and role; a refusal without one."""
        if certificate is None:
            return _refused(kind, "no-certificate", "the handshake must show the certificate that is meant")
        row = self._store.by_fingerprint(hashlib.sha256(certificate).digest())
        if row is None or not isinstance(row.role, Role):
            sentence = "this relay has not issued the certificate, or has forgotten it; join with a token"
            return _refused(kind, "unknown-certificate", sentence)
        return certificate, row, row.role

    def _sign(
        self, request: x509.CertificateSigningRequest, wanted: Wanted, now: datetime, *, serial: str | None = None
    ) -> list[x509.Certificate]:
        """The certificate for the request's key, with the intermediates above it.

        Raises ``CertificateError``, and ``MessageError`` for one that fits into no answer.
        """
        if self._signer is not None:
            chain = self._signer.sign(request, wanted, now=now)
        else:
            certificate = self._authority.sign(
                request.public_key(),
                name=wanted.name,
                role=wanted.role,
                services=wanted.services,
                dns=wanted.dns,
                uris=wanted.uris,
                lifetime=wanted.lifetime,
                serial=serial,
                now=now,
            )
            chain = [certificate]
        encode(self._message(keys.certificate_pem(*chain), wanted, now, now))
        return chain

    def _issued(self, kind: str, result: str, row: Row, now: datetime) -> Outcome:
        message = self._message(row.chain, row, half(row), now)
        token = "" if row.token is None else row.token.hex()
        return _outcome(kind, result, message, token=token, holder=row)

    def _message(self, chain: bytes, holder: Wanted | Row, renew_after: datetime, now: datetime) -> Issued:
        return Issued(
            chain=chain.decode(),
            ca=self._relay.ca_pem.decode(),
            servers=self._relay.servers,
            server_name=self._relay.server_name,
            name=holder.name,
            role=Role(holder.role),
            services=holder.services,
            renew_after=renew_after,
            server_time=now,
        )


def failed(kind: str, cause: str, sentence: str, trouble: str, *, token: str = "") -> Outcome:
    """The refusal for a fault of the relay, whose operator is told of it; the same request may succeed later."""
    return _refused(kind, cause, sentence, token=token, again=True, trouble=trouble)


def _refused(
    kind: str,
    cause: str,
    sentence: str,
    *,
    token: str = "",
    holder: Row | None = None,
    again: bool = False,
    trouble: str = "",
) -> Outcome:
    text = "".join(char if char.isprintable() else "?" for char in sentence)[:MAX_SENTENCE]
    return Outcome(
        kind,
        cause,
        encode(Refused(cause, text, again)),
        reason=text,
        token=token,
        holder=holder,
        trouble=trouble,
        guess=not again,
    )


def _outcome(
    kind: str, result: str, message: Answer, *, token: str = "", holder: Row | None = None, ended: tuple[Row, ...] = ()
) -> Outcome:
    return Outcome(kind, result, encode(message), token=token, holder=holder, ended=ended)


def _begin(row: Row) -> datetime:
    """When a certificate was issued: it may say that it began earlier, for the sake of clocks that are behind."""
    return max(row.not_before, row.not_after - row.lifetime)


def half(row: Row) -> datetime:
    """Half of a certificate's life, when to renew it."""
    return _begin(row) + (row.not_after - _begin(row)) / 2


def _settled(row: Row) -> datetime:
    """Until when a certificate is given again instead of a newer one: a quarter of its life at most."""
    return _begin(row) + min(SETTLE, (row.not_after - _begin(row)) / 4)
