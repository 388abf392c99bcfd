"""Issuing certificates for agents and connectors from the development CA, and taking them back.

The names of the wire convention, ``agent.<service>.ztna`` and ``connector.<service>.ztna``, say what the holder may be;
``*`` as service means all. An index in the state directory (``issued.json``) remembers what was issued; ``crl.pem`` is
written again on each change.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.errors import CertificateError
from intermediate_server.pki import development, files, index, keys
from intermediate_server.pki.index import Issued
from intermediate_server.types import Role

__all__ = ["Authority", "Issued"]

CRL = "crl.pem"
ISSUED = "issued"
DEFAULT_DAYS = 365
MAX_DAYS = 3650

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SERVICE = re.compile(r"\*|[a-z0-9_]([a-z0-9._-]{0,198}[a-z0-9_])?")


class Authority:
    """The development CA of a state directory, to issue and revoke with.

    Every method takes the directory's lock, reads the index and leaves it whole: several commands may run at once.
    All raise ``CertificateError``.
    """

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir

    @property
    def certificate_path(self) -> Path:
        """The CA certificate, for ``--ca-cert`` of servers and clients."""
        return self._dir / development.CA_CERTIFICATE

    @property
    def crl_path(self) -> Path:
        """The certificate revocation list."""
        return self._dir / CRL

    def init(self, *, now: datetime | None = None) -> bool:
        """Make the CA and an empty revocation list if missing; whether the CA is new."""
        now = now or keys.utc_now()
        with files.locked(self._dir):
            created = not self.certificate_path.exists()
            authority, key = development.ensure_authority(self._dir, now=now)
            if not self.crl_path.exists():
                self._write_crl(index.read(self._dir), authority, key, now)
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
                names=[x509.DNSName(f"{role.value}.{service}.ztna") for service in wanted],
                usage=keys.CLIENT_AUTH,
                not_before=now - keys.BACKDATE,
                not_after=now + timedelta(days=days),
            )
            files.prepare_directory(self._dir / ISSUED)
            files.write_file(self.key_path(name), keys.key_pem(key), private=True)
            return self._record(issued, certificate, name=name, role=role, services=wanted)

    def renew(self, name: str, *, days: int = DEFAULT_DAYS, now: datetime | None = None) -> Issued:
        """A new certificate for the same key, names and services; the old one lives on until it expires.

        The same key means the same inner address. The private key is not needed: it may be on the holder's device.
        """
        now = now or keys.utc_now()
        _check_days(days)
        with self._open(now) as (authority, authority_key):
            issued = index.read(self._dir)
            last = next((entry for entry in reversed(issued) if entry.name == name), None)
            if last is None:
                raise CertificateError(_unknown(name))
            if last.revoked_at is not None:
                raise CertificateError(f"{name} was revoked; issue a new certificate for it")
            old = keys.load_certificates(self.certificate_file(name))[0]
            if f"{old.serial_number:x}" != last.serial:
                raise CertificateError(f"{self.certificate_file(name)} is not the one issued; restore it")
            certificate = keys.sign(
                subject=old.subject,
                public_key=old.public_key(),
                authority=authority,
                authority_key=authority_key,
                names=list(old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value),
                usage=keys.CLIENT_AUTH,
                not_before=now - keys.BACKDATE,
                not_after=now + timedelta(days=days),
            )
            return self._record(issued, certificate, name=name, role=last.role, services=last.services)

    def revoke(self, which: str, *, now: datetime | None = None) -> list[Issued]:
        """Revoke by name (all its certificates), serial or fingerprint, and write the revocation list; what it hit."""
        now = now or keys.utc_now()
        with self._open(now) as (authority, authority_key):
            issued = index.read(self._dir)
            plain = which.lower().replace(":", "")
            hit = [entry for entry in issued if which == entry.name or plain in (entry.serial, entry.fingerprint)]
            if not hit:
                raise CertificateError(_unknown(which))
            revoked = [replace(entry, revoked_at=entry.revoked_at or now) for entry in hit]
            by_serial = {entry.serial: entry for entry in revoked}
            issued = [by_serial.get(entry.serial, entry) for entry in issued]
            # The list first: should the index fail to be written, the command fails and the certificate is cut.
            self._write_crl(issued, authority, authority_key, now)
            index.write(self._dir, issued)
            return revoked

    def entries(self) -> list[Issued]:
        """Everything issued, oldest first."""
        if not self.certificate_path.exists():
            raise CertificateError(f"CA not found: {self.certificate_path}; run: intermediate-server pki init")
        with files.locked(self._dir):
            return index.read(self._dir)

    def certificate_file(self, name: str) -> Path:
        """Where the newest certificate of a name is written."""
        return self._dir / ISSUED / f"{name}.pem"

    def key_path(self, name: str) -> Path:
        """Where the private key of a name is written; it may be moved to the holder's device."""
        return self._dir / ISSUED / f"{name}.key"

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
        role: Role,
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
        # Recorded before it exists: a certificate nobody remembers could not be revoked.
        index.write(self._dir, [*issued, entry])
        files.write_file(self.certificate_file(name), keys.certificate_pem(certificate), private=False)
        return entry

    def _write_crl(
        self, issued: Sequence[Issued], authority: x509.Certificate, key: keys.PrivateKey, now: datetime
    ) -> None:
        """Write the revocation list (RFC 5280 section 5), numbered one above the last.

        It is valid as long as the CA: it is written when something changes and not on a schedule, so a date in it
        would only shut everyone out on a quiet day. What the last list revoked and the index does not know stays
        revoked: an index restored from an old copy must let nobody back in.
        """
        last = self._last_crl()
        number = 1 if last is None else last.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number + 1
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(authority.subject)
            .last_update(now)
            .next_update(authority.not_valid_after_utc)
            .add_extension(keys.authority_identifier(authority, key), critical=False)
            .add_extension(x509.CRLNumber(number), critical=False)
        )
        dates = {} if last is None else {item.serial_number: item.revocation_date_utc for item in last}
        for entry in issued:
            if entry.not_after <= now:
                dates.pop(int(entry.serial, 16), None)
            elif entry.revoked_at is not None:
                dates[int(entry.serial, 16)] = entry.revoked_at
        for serial, date in dates.items():
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(date).build()
            )
        crl = builder.sign(key, keys.signing_hash(key))
        files.write_file(self.crl_path, crl.public_bytes(Encoding.PEM), private=False)

    def _last_crl(self) -> x509.CertificateRevocationList | None:
        if not self.crl_path.exists():
            return None
        try:
            crl = x509.load_pem_x509_crl(files.read_file(self.crl_path, "revocation list"))
            crl.extensions.get_extension_for_class(x509.CRLNumber)
        except (ValueError, x509.ExtensionNotFound):
            raise CertificateError(
                f"revocation list {self.crl_path} is damaged; move it away, and it is written anew from the index"
            ) from None
        return crl


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


def _check_days(days: int) -> None:
    if not 1 <= days <= MAX_DAYS:
        raise CertificateError(f"{days} days is out of range, 1 to {MAX_DAYS}")


def _unknown(which: str) -> str:
    return f"{which[:64]!r} was not issued here; run: intermediate-server pki list"
