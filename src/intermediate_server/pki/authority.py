"""Issue of certificates for agents and connectors from the development CA, and their revocation.

The names of the wire convention, ``agent.<service>.ztna`` and ``connector.<service>.ztna``, name the roles and services
of the holder; ``*`` as service means all. An index in the state directory (``issued.json``) lists the issued
certificates; ``crl.pem`` is written again on each change.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from cryptography import x509

from intermediate_server.errors import CertificateError
from intermediate_server.pki import crl, development, files, index, keys
from intermediate_server.pki.index import SERVER, Issued
from intermediate_server.types import Role

__all__ = ["Authority", "Issued"]

ISSUED = "issued"
DEFAULT_DAYS = 365
MAX_DAYS = 3650

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_LABEL = r"(?:(?:serial(?: number)?|sha-?256 fingerprint)[=:]\s*)?"
_NUMBER = re.compile(rf"{_LABEL}(?:0x)?([0-9a-f]+(?::[0-9a-f]+)*)", re.IGNORECASE)
_HOST = re.compile(r"(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?)+")
_SERVICE = re.compile(r"\*|[a-z0-9_]([a-z0-9._-]{0,198}[a-z0-9_])?")


class Authority:
    """The development CA of a state directory, to issue and revoke with.

    Every method takes the directory's lock, reads the index and leaves it whole: several commands may run at once.
    All raise ``CertificateError``.
    """

    def __init__(self, state_dir: Path | str) -> None:
        self._dir = Path(state_dir)

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
            authority, key = development.ensure_authority(self._dir, now=now)
            if not crl.is_current(self._dir, authority):
                crl.write(self._dir, index.read(self._dir), authority, key, now=now)
            return created

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
        if _NAME.fullmatch(name) is None:
            raise CertificateError(f"{name[:64]!r} cannot be a name; use up to 64 letters, digits and . _ - @")
        wanted = _check_services(services)
        _check_days(days)
        return self._issue(
            role, name, _names(role, wanted), wanted, keys.CLIENT_AUTH, key_type=key_type, days=days, now=now
        )

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
        subjects = _server_names([name, *names])
        file = name.replace(":", "-")
        if _NAME.fullmatch(file) is None:
            raise CertificateError(f"{name[:64]!r} cannot be the name of a relay; use a DNS name or an address")
        return self._issue(SERVER, file, subjects, (), keys.SERVER_AUTH, key_type=key_type, days=days, now=now)

    def renew(
        self, name: str, *, services: Sequence[str] = (), days: int = DEFAULT_DAYS, now: datetime | None = None
    ) -> Issued:
        """A new certificate for the same key and names; the old one lives on until it expires.

        The same key means the same inner address. The private key is not needed: it may be on the holder's device.
        ``services`` replace the services of the old certificate.
        """
        now = now or keys.utc_now()
        _check_days(days)
        wanted = _check_services(services) if services else ()
        with self._open(now) as (authority, authority_key):
            issued = index.read(self._dir)
            last = next((entry for entry in reversed(issued) if entry.name == name), None)
            if last is None:
                raise CertificateError(_unknown(name))
            if last.revoked_at is not None:
                raise CertificateError(f"{name} was revoked; issue a new certificate for it")
            if wanted and last.role == SERVER:
                raise CertificateError(f"{name} is a relay, which has no services")
            old = keys.load_certificates(self.certificate_file(name))[0]
            if f"{old.serial_number:x}" != last.serial:
                raise CertificateError(f"{self.certificate_file(name)} is not the one issued; restore it")
            certificate = keys.sign(
                subject=old.subject,
                public_key=old.public_key(),
                authority=authority,
                authority_key=authority_key,
                names=_names(last.role, wanted)
                or list(old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value),
                usage=keys.SERVER_AUTH if last.role == SERVER else keys.CLIENT_AUTH,
                not_before=now - keys.BACKDATE,
                not_after=now + timedelta(days=days),
            )
            return self._record(issued, certificate, name=name, role=last.role, services=wanted or last.services)

    def revoke(self, which: str, *, now: datetime | None = None) -> list[Issued]:
        """Revoke by name (all its certificates), serial or fingerprint, and write the list; returns the revoked ones.

        Serial and SHA-256 fingerprint are hexadecimal, written as here, in a log or by ``openssl x509``.
        """
        now = now or keys.utc_now()
        with self._open(now) as (authority, authority_key):
            issued = index.read(self._dir)
            number = _number(which)
            numbers = () if number is None else (f"{number:x}", f"{number:064x}")
            hit = [entry for entry in issued if entry.name == which] or [
                entry for entry in issued if entry.serial in numbers or entry.fingerprint in numbers
            ]
            if not hit:
                raise CertificateError(_unknown(which))
            revoked = [replace(entry, revoked_at=entry.revoked_at or now) for entry in hit]
            by_serial = {entry.serial: entry for entry in revoked}
            issued = [by_serial.get(entry.serial, entry) for entry in issued]
            # The list first: if the index cannot be written, the command fails and the certificate is revoked.
            crl.write(self._dir, issued, authority, authority_key, now=now)
            index.write(self._dir, issued)
            return revoked

    def entries(self) -> list[Issued]:
        """Everything issued, oldest first."""
        if not self.certificate_path.exists():
            raise CertificateError(f"CA not found: {self.certificate_path}; run: intermediate-server pki init")
        with files.locked(self._dir):
            return index.read(self._dir)

    def certificate_file(self, name: str) -> Path:
        """The file of the newest certificate of a name."""
        return self._dir / ISSUED / f"{name}.pem"

    def key_path(self, name: str) -> Path:
        """The file of the private key of a name; it may be moved to the holder's device."""
        return self._dir / ISSUED / f"{name}.key"

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
        with self._open(now) as (authority, authority_key):
            issued = index.read(self._dir)
            if any(entry.name == name and entry.is_live(now) for entry in issued):
                raise CertificateError(f"{name} has a certificate; run: intermediate-server pki renew {name}")
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
            return self._record(issued, certificate, name=name, role=role, services=services)

    @contextlib.contextmanager
    def _open(self, now: datetime) -> Iterator[tuple[x509.Certificate, keys.PrivateKey]]:
        if not self.certificate_path.exists():
            raise CertificateError(f"CA not found: {self.certificate_path}; run: intermediate-server pki init")
        with files.locked(self._dir):
            yield development.load_authority(self._dir, now=now)

    def _record(
        self,
        issued: Sequence[Issued],
        certificate: x509.Certificate,
        *,
        name: str,
        role: Role | Literal["server"],
        services: tuple[str, ...],
    ) -> Issued:
        entry = Issued(
            name=name,
            role=role,
            services=services,
            serial=f"{certificate.serial_number:x}",
            fingerprint=certificate.fingerprint(keys.SHA256).hex(),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            revoked_at=None,
        )
        # Recorded before it exists: an unrecorded certificate could not be revoked.
        index.write(self._dir, [*issued, entry])
        files.write_file(self.certificate_file(name), keys.certificate_pem(certificate), private=False)
        return entry


def _names(role: Role | Literal["server"], services: Sequence[str]) -> list[x509.GeneralName]:
    """The DNS names that grant these services."""
    return [x509.DNSName(f"{role if role == SERVER else role.value}.{service}.ztna") for service in services]


def _server_names(names: Sequence[str]) -> list[x509.GeneralName]:
    found: dict[x509.GeneralName, None] = {}
    for text in (*names, *development.SERVER_NAMES[:1]):
        try:
            found[x509.IPAddress(ip_address(text))] = None
        except ValueError:
            if _HOST.fullmatch(text) is None:
                raise CertificateError(f"{text[:64]!r} is neither a DNS name nor an address") from None
            found[x509.DNSName(text.lower().removesuffix("."))] = None
    return list(found)


def _check_services(services: Sequence[str]) -> tuple[str, ...]:
    lowered = tuple(dict.fromkeys(service.strip().lower() for service in services))
    if not lowered:
        raise CertificateError("a certificate needs at least one service; add --service NAME, or --service '*' for all")
    for service in lowered:
        if _SERVICE.fullmatch(service) is None:
            raise CertificateError(
                f"{service[:64]!r} cannot be a service of a certificate; use up to 200 letters, digits and . _ -, or *"
            )
    return lowered


def _number(text: str) -> int | None:
    """The number in ``0A1B``, ``0a:1b``, ``0x0a1b``, ``serial=0A1B`` or ``sha256 Fingerprint=0A:1B``, else None."""
    match = _NUMBER.fullmatch(text.strip())
    return None if match is None else int(match[1].replace(":", ""), 16)


def _check_days(days: int) -> None:
    if not 1 <= days <= MAX_DAYS:
        raise CertificateError(f"{days} days is out of range, 1 to {MAX_DAYS}")


def _unknown(which: str) -> str:
    return f"{which[:64]!r} was not issued here; run: intermediate-server pki list"
