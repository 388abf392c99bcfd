"""Issue of certificates for agents and connectors from the development CA, and their revocation.

``identity.db`` of the state directory lists the issued certificates; ``crl.pem`` is written again on each change. What
another CA has issued is revoked by its fingerprint in ``denied.txt``.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from intermediate_server.errors import CertificateError
from intermediate_server.pki import crl, denied, development, files, keys
from intermediate_server.pki.names import check_name, check_services, client_names, number_of, server_names
from intermediate_server.pki.store import SERVER, Cause, Issued, Store
from intermediate_server.types import Role

__all__ = ["Authority", "Issued", "NotIssued"]

ISSUED = "issued"
DEFAULT_DAYS = 365
MAX_DAYS = 3650


class NotIssued(CertificateError):
    """Nothing of this name, serial or fingerprint was issued here."""


class Authority:
    """The development CA of a state directory, to issue and revoke with.

    Every method takes the directory's lock and leaves CA, index and list whole: several commands may run at once. All
    raise ``CertificateError``.
    """

    def __init__(self, state_dir: Path | str, store: Store | None = None) -> None:
        """``store`` is the open database of the directory; without it each method opens it for itself."""
        self._dir = Path(state_dir)
        self._store = store

    @property
    def certificate_path(self) -> Path:
        """The CA certificate, for ``--ca-cert`` of servers and clients."""
        return self._dir / development.CA_CERTIFICATE

    @property
    def crl_path(self) -> Path:
        """The certificate revocation list."""
        return self._dir / crl.CRL

    def init(self, *, now: datetime | None = None) -> bool:
        """Make the CA and its revocation list if missing; returns whether the CA is new."""
        now = now or keys.utc_now()
        with files.locked(self._dir):
            created = not self.certificate_path.exists()
            development.ensure_authority(self._dir, now=now)
            signers = development.signers(self._dir)
            if not all(crl.is_current(self._dir, authority) for authority, _ in signers):
                with self.store_of() as store:
                    crl.write(self._dir, store.revoked(), signers, now=now)
            return created

    def bundle(self) -> bytes:
        """Every CA whose certificates count, PEM: two during a rollover."""
        return development.bundle(self._dir)

    def issue(
        self,
        role: Role,
        name: str,
        *,
        services: Sequence[str],
        key_type: keys.KeyType = "p256",
        days: int = DEFAULT_DAYS,
        now: datetime | None = None,
    ) -> Issued:
        """A new key and certificate for one agent or connector.

        ``name`` becomes the subject and the file name; ``services`` are lower-cased, ``*`` is all; ``days`` is 1 to
        3650, never beyond the CA's own end.
        """
        now = now or keys.utc_now()
        check_name(name)
        wanted = check_services(services)
        _check_days(days)
        names = client_names(role, wanted)
        return self._issue(role, name, names, wanted, keys.CLIENT_AUTH, key_type=key_type, days=days, now=now)

    def issue_server(
        self,
        name: str,
        *,
        names: Sequence[str] = (),
        key_type: keys.KeyType = "p256",
        days: int = DEFAULT_DAYS,
        now: datetime | None = None,
    ) -> Issued:
        """A new key and certificate for a relay that clients dial as ``name``, a DNS name or an address.

        ``names`` are further ones; the names that clients in the field check are always included.
        """
        now = now or keys.utc_now()
        _check_days(days)
        subjects = server_names([name, *names, development.SERVER_NAMES[0]])
        file = name.replace(":", "-")
        try:
            check_name(file)
        except CertificateError:
            raise CertificateError(
                f"{name[:64]!r} cannot be the name of a relay; use a DNS name or an address"
            ) from None
        return self._issue(SERVER, file, subjects, (), keys.SERVER_AUTH, key_type=key_type, days=days, now=now)

    def sign(
        self,
        public_key: CertificatePublicKeyTypes,
        *,
        name: str,
        role: Role,
        services: Sequence[str],
        lifetime: timedelta,
        dns: Sequence[str] = (),
        uris: Sequence[str] = (),
        serial: str | None = None,
        now: datetime | None = None,
    ) -> x509.Certificate:
        """A certificate for an agent's or a connector's key, not yet recorded; ``serial`` is hexadecimal."""
        now = now or keys.utc_now()
        authority, authority_key = development.load_authority(self._dir, now=now)
        return keys.sign(
            subject=keys.common_name(name),
            public_key=public_key,
            authority=authority,
            authority_key=authority_key,
            names=client_names(role, services, dns, uris),
            usage=keys.CLIENT_AUTH,
            not_before=now - keys.BACKDATE,
            not_after=now + lifetime,
            serial=None if serial is None else int(serial, 16),
        )

    def renew(
        self, name: str, *, services: Sequence[str] = (), days: int = DEFAULT_DAYS, now: datetime | None = None
    ) -> Issued:
        """A new certificate for the same key and names; the old one lives on until it expires.

        The same key means the same inner address. The private key is not needed: it may be on the holder's device.
        ``services`` replace the services of the old certificate.
        """
        now = now or keys.utc_now()
        _check_days(days)
        wanted = check_services(services) if services else ()
        with self._open(now) as (authority, authority_key, store):
            named = store.select("i.name = ?", name)
            if not named:
                raise NotIssued(_unknown(name))
            last = named[-1]
            if any(item.is_live(now) and item.role != last.role for item in named):
                raise CertificateError(f"{name} is both agent and connector, which have joined and renew themselves")
            if last.revoked_at is not None or last.ended_at is not None:
                raise CertificateError(f"{name} was revoked; issue a new certificate for it")
            if wanted and last.role == SERVER:
                raise CertificateError(f"{name} is a relay, which has no services")
            old = self._certificate_of(last)
            certificate = keys.sign(
                subject=old.subject,
                public_key=old.public_key(),
                authority=authority,
                authority_key=authority_key,
                names=client_names(last.role, wanted, last.dns, last.uris)
                if wanted and last.role != SERVER
                else list(old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value),
                usage=keys.SERVER_AUTH if last.role == SERVER else keys.CLIENT_AUTH,
                not_before=now - keys.BACKDATE,
                not_after=now + timedelta(days=days),
            )
            entry = self._record(
                store, last.identity, certificate, authority, services=wanted or last.services, now=now
            )
            self._hand_out(name, certificate)
            return entry

    def renewed(self, last: Issued, chain: Sequence[x509.Certificate], *, now: datetime | None = None) -> Issued:
        """Record the certificate by which a holder has renewed itself, leaf first in ``chain``.

        Refused when the holder has ended meanwhile.
        """
        now = now or keys.utc_now()
        with self.opened() as store, store.transaction():
            newest = store.newest(last.identity)
            if newest is None or newest.ended_at is not None:
                raise CertificateError(
                    f"{last.name} was revoked; make a token for it: intermediate-server token create"
                )
            made = store.add_certificate(last.identity, chain, services=last.services, issuer=self.issuer_of(chain[0]))
            self.tidy(store, now)
            return made

    def revoke(self, which: str, *, whole: bool = False, now: datetime | None = None) -> list[Issued]:
        """Revoke by name (all its certificates), serial or fingerprint, and write the list; returns the revoked ones.

        Serial and SHA-256 fingerprint are hexadecimal, written as here, in a log or by ``openssl x509``. ``whole``
        revokes everything of the holder of such a certificate, which may not renew either.
        """
        now = now or keys.utc_now()
        if not whole:
            self._check_ca()
        with self.opened() as store:
            named = store.select("i.name = ?", which)
            hit = named or _by_number(store, which)
            if not hit:
                raise NotIssued(_unknown(which))
            if whole and not named:
                hit = [item for each in {item.identity for item in hit} for item in _of(store, each)]
            return self._revoke(store, hit, "revoked" if named or whole else None, now=now)

    def end(self, identity: int, cause: Cause, *, now: datetime | None = None) -> list[Issued]:
        """End an identity: it may not renew, and its certificates are revoked; returns them."""
        now = now or keys.utc_now()
        with self.opened() as store:
            return self._revoke(store, _of(store, identity), cause, now=now)

    def entries(self) -> list[Issued]:
        """Everything issued, oldest first."""
        self._check_ca()
        with self.opened() as store:
            return store.entries()

    def certificate_file(self, name: str) -> Path:
        """The file of the newest certificate that :meth:`issue` has made for a name."""
        return self._dir / ISSUED / f"{name}.pem"

    def key_path(self, name: str) -> Path:
        """The file of the private key of a name; it may be moved to the holder's device."""
        return self._dir / ISSUED / f"{name}.key"

    @contextlib.contextmanager
    def opened(self) -> Iterator[Store]:
        """The database, with the directory's lock held."""
        with files.locked(self._dir), self.store_of() as store:
            yield store

    def issuer_of(self, leaf: x509.Certificate) -> bytes:
        """SHA-256 of the CA here that has signed a certificate; if none has, of the name of the one that did."""
        own = self.certificate_path
        for authority in keys.load_certificates(own) if own.exists() else ():
            if keys.is_signed_by(leaf, authority):
                return authority.fingerprint(keys.SHA256)
        return hashlib.sha256(leaf.issuer.public_bytes()).digest()

    def publish(self, store: Store, revoked: Sequence[Issued], now: datetime) -> None:
        """Write ``crl.pem`` from the index, and into ``denied.txt`` what it cannot hold of these certificates.

        The caller holds the directory's lock.
        """
        signers = development.signers(self._dir)
        if signers:
            crl.write(self._dir, store.revoked(), signers, now=now)
        own = {authority.fingerprint(keys.SHA256) for authority, _ in signers}
        if own:
            own.add(b"")
        foreign = [item for item in revoked if item.issuer not in own and now < item.not_after]
        denied.add(self._dir, [(item.fingerprint, item.name) for item in foreign], now=now)

    def tidy(self, store: Store, now: datetime) -> None:
        """Drop what has expired long ago from the index; what of it is revoked leaves the list first.

        The caller holds the directory's lock.
        """
        if any(item.revoked_at is not None for item in store.expired(now)):
            self.publish(store, (), now)
        store.purge(now=now)

    def _issue(
        self,
        role: Role | Literal["server"],
        name: str,
        names: Sequence[x509.GeneralName],
        services: tuple[str, ...],
        usage: x509.ObjectIdentifier,
        *,
        key_type: keys.KeyType,
        days: int,
        now: datetime,
    ) -> Issued:
        with self._open(now) as (authority, authority_key, store):
            with store.transaction():
                if any(entry.is_live(now) for entry in store.select("i.name = ? AND i.ended IS NULL", name)):
                    raise CertificateError(f"{name} has a certificate; run: intermediate-server pki renew {name}")
                before = store.holder_of_name(name, role)
                if before is not None:
                    store.end(before, "replaced", now=now)
                key = keys.new_key(key_type)
                certificate = keys.sign(
                    subject=keys.common_name(name),
                    public_key=key.public_key(),
                    authority=authority,
                    authority_key=authority_key,
                    names=names,
                    usage=usage,
                    not_before=now - keys.BACKDATE,
                    not_after=now + timedelta(days=days),
                )
                files.prepare_directory(self._dir / ISSUED)
                files.write_file(self.key_path(name), keys.key_pem(key), private=True)
                identity = store.add_identity(name, role, services=services, lifetime=timedelta(days=days), now=now)
                entry = self._record(store, identity, certificate, authority, services=services, now=now)
            self._hand_out(name, certificate)
            return entry

    def _certificate_of(self, last: Issued) -> x509.Certificate:
        """The newest certificate of a holder; that of an earlier version is in a file only."""
        if last.chain:
            return keys.parse_certificates(last.chain, "of identity.db")[0]
        path = self.certificate_file(last.name)
        old = keys.load_certificates(path)[0]
        if f"{old.serial_number:x}" != last.serial:
            raise CertificateError(f"{path} is not the one issued; restore it")
        return old

    @contextlib.contextmanager
    def _open(self, now: datetime) -> Iterator[tuple[x509.Certificate, keys.PrivateKey, Store]]:
        self._check_ca()
        with files.locked(self._dir):
            authority, key = development.load_authority(self._dir, now=now)
            with self.store_of() as store:
                yield authority, key, store

    @contextlib.contextmanager
    def store_of(self) -> Iterator[Store]:
        """The database, without the directory's lock: for what touches nothing else."""
        if self._store is not None:
            yield self._store
        else:
            with Store(self._dir) as store:
                yield store

    def _check_ca(self) -> None:
        if not self.certificate_path.exists():
            raise CertificateError(f"CA not found: {self.certificate_path}; run: intermediate-server pki init")

    def _record(
        self,
        store: Store,
        identity: int,
        certificate: x509.Certificate,
        authority: x509.Certificate,
        *,
        services: tuple[str, ...],
        now: datetime,
    ) -> Issued:
        with store.transaction():
            issuer = authority.fingerprint(keys.SHA256)
            entry = store.add_certificate(identity, [certificate], services=services, issuer=issuer)
            self.tidy(store, now)
        return entry

    def _hand_out(self, name: str, certificate: x509.Certificate) -> None:
        """Write the file of a certificate. It is recorded before: what is not could not be revoked."""
        files.prepare_directory(self._dir / ISSUED)
        files.write_file(self.certificate_file(name), keys.certificate_pem(certificate), private=False)

    def _revoke(self, store: Store, hit: Sequence[Issued], cause: Cause | None, *, now: datetime) -> list[Issued]:
        with store.transaction():
            # The lists before the index is kept: if it cannot be, the command fails and the certificate is revoked.
            store.revoke([item.fingerprint for item in hit], now=now)
            if cause is not None:
                for identity in {item.identity for item in hit}:
                    store.end(identity, cause, now=now)
            self.publish(store, hit, now)
            return [made for item in hit if (made := store.by_fingerprint(bytes.fromhex(item.fingerprint)))]


def _by_number(store: Store, which: str) -> list[Issued]:
    number = number_of(which)
    if number is None or number.bit_length() > 256:
        return []
    return store.select("c.serial = ? OR c.fingerprint = ?", f"{number:x}", number.to_bytes(32, "big"))


def _of(store: Store, identity: int) -> list[Issued]:
    return store.select("c.identity = ?", identity)


def _check_days(days: int) -> None:
    if not 1 <= days <= MAX_DAYS:
        raise CertificateError(f"{days} days is out of range, 1 to {MAX_DAYS}")


def _unknown(which: str) -> str:
    return f"{which[:64]!r} was not issued here; run: intermediate-server pki list"
