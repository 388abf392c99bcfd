"""Rollover: one development CA takes over from another, and no device is touched.

``start`` makes the new CA: both are trusted, and renewals hand out both. After one life of certificates ``switch`` lets
the new one sign. After one more ``finish`` drops the old one. The server's own certificate stays with the old CA to the
end, since a client that has not renewed knows no other. Each step may be repeated after a crash.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography import x509

from intermediate_server.errors import CertificateError
from intermediate_server.pki import crl, development, files, keys
from intermediate_server.pki.authority import Authority
from intermediate_server.pki.development import CA_CERTIFICATE, CA_KEY, CA_NEXT_KEY, CA_OLD_KEY
from intermediate_server.pki.joins import Joins
from intermediate_server.pki.store import Issued, Store
from intermediate_server.pki.terms import TokenRow

Phase = Literal["none", "started", "switched"]


@dataclass(frozen=True, slots=True)
class Dependents:
    """The identities and tokens that are of no use without the old CA."""

    identities: tuple[Issued, ...]
    tokens: tuple[TokenRow, ...]


class Rollover:
    """The rollover of a state directory. All methods raise ``CertificateError``."""

    def __init__(self, state_dir: Path | str) -> None:
        self._dir = Path(state_dir)
        self._bundle = self._dir / CA_CERTIFICATE

    def phase(self) -> Phase:
        """How far it is."""
        if not self._bundle.exists():
            raise CertificateError(f"CA not found: {self._bundle}; run: intermediate-server pki init")
        certificates = keys.load_certificates(self._bundle)
        if len(certificates) == 1:
            return "none"
        for name, phase in ((CA_NEXT_KEY, "started"), (CA_OLD_KEY, "switched")):
            if _of_key(self._dir / name, certificates) is not None:
                return "started" if phase == "started" else "switched"
        return "none"

    def start(self, *, now: datetime | None = None) -> x509.Certificate:
        """Make the new CA, which is trusted at once and signs nothing yet."""
        now = now or keys.utc_now()
        with files.locked(self._dir):
            if self.phase() != "none":
                raise CertificateError(
                    f"a rollover is under way; next: intermediate-server pki rollover {self._next()}"
                )
            authority, _ = development.load_authority(self._dir, now=now)
            path = self._dir / CA_NEXT_KEY
            if not path.exists():
                files.write_file(path, keys.key_pem(keys.new_key()), private=True)
            key = keys.load_key(path)
            made = development.new_authority(key, now=now)
            # The list before the CA: a relay that trusts a CA wants its list.
            with Store(self._dir) as store:
                signers = [*development.signers(self._dir), (made, key)]
                crl.write(self._dir, store.revoked(), signers, now=now)
            self._write([authority, made])
            return made

    def switch(self, trusted: Path | None = None, *, now: datetime | None = None) -> x509.Certificate:
        """Let the new CA sign; ``trusted`` is the relay's ``ca-cert`` where that is set."""
        now = now or keys.utc_now()
        with files.locked(self._dir):
            phase = self.phase()
            if phase == "none":
                raise CertificateError("no rollover has begun; run: intermediate-server pki rollover start")
            certificates = keys.load_certificates(self._bundle)
            if phase == "started":
                new = _of_key(self._dir / CA_NEXT_KEY, certificates)
                if trusted is not None and new not in keys.load_certificates(trusted):
                    raise CertificateError(
                        f"the relay's ca-cert {trusted} lacks the new CA, whose certificates it would refuse; append "
                        f"{self._bundle} to it first"
                    )
                old = files.read_private_file(self._dir / CA_KEY, "CA key file")
                files.write_file(self._dir / CA_OLD_KEY, old, private=True)
                # From this rename on the new CA signs.
                (self._dir / CA_NEXT_KEY).replace(self._dir / CA_KEY)
            authority, _ = development.load_authority(self._dir, now=now)
            self._write([authority, *(item for item in certificates if item != authority)])
            return authority

    def finish(self, *, now: datetime | None = None) -> x509.Certificate:
        """Drop the old CA. Refused while :meth:`dependents` has somebody."""
        now = now or keys.utc_now()
        if self.phase() != "switched":
            raise CertificateError(f"nothing to finish; next: intermediate-server pki rollover {self._next()}")
        left = self.dependents(now=now)
        if left.identities or left.tokens:
            raise CertificateError(_refusal(left))
        with files.locked(self._dir):
            authority, key = development.load_authority(self._dir, now=now)
            self._write([authority])
            with contextlib.suppress(FileNotFoundError):
                (self._dir / CA_OLD_KEY).unlink()
            with Store(self._dir) as store:
                crl.write(self._dir, store.revoked(), [(authority, key)], now=now)
            return authority

    def dependents(self, *, now: datetime | None = None) -> Dependents:
        """The identities whose newest certificate is not of the signing CA, and the tokens that pin another one."""
        now = now or keys.utc_now()
        authority, _ = development.load_authority(self._dir, now=now)
        others = {item.fingerprint(keys.SHA256) for item in keys.load_certificates(self._bundle) if item != authority}
        index = Authority(self._dir)
        with index.opened() as store:
            newest = {entry.identity: entry for entry in store.select("c.not_after > ?", int(now.timestamp()))}
        identities = [item for item in newest.values() if item.is_live(now) and item.issuer in (*others, b"")]
        tokens = [row for row in Joins(index).tokens() if row.state(now) == "live" and row.pin in others]
        return Dependents(tuple(identities), tuple(tokens))

    def _next(self) -> str:
        return {"none": "start", "started": "switch", "switched": "finish"}[self.phase()]

    def _write(self, certificates: Sequence[x509.Certificate]) -> None:
        files.write_file(self._bundle, keys.certificate_pem(*certificates), private=False)


def _of_key(path: Path, certificates: Sequence[x509.Certificate]) -> x509.Certificate | None:
    if not path.exists():
        return None
    key = keys.load_key(path)
    return next((item for item in certificates if keys.belongs(item, key)), None)


def _refusal(left: Dependents) -> str:
    lines = ["the old CA is still needed; wait until these have renewed or ended, or revoke them:"]
    lines += [
        f"  {item.holder} {item.name}, certificate until {item.not_after:%Y-%m-%d %H:%M} UTC"
        for item in left.identities
    ]
    lines += [f"  token {row.id.hex()}, until {row.expires_at:%Y-%m-%d %H:%M} UTC" for row in left.tokens]
    return "\n".join(lines)
