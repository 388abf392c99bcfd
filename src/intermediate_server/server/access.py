"""What decides about access, read and checked as a whole before any of it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from intermediate_server.config import Settings
from intermediate_server.errors import ConfigError
from intermediate_server.pki import CertificateId, Revocations, files, load_revocations
from intermediate_server.pki.authority import CRL
from intermediate_server.pki.development import CA_CERTIFICATE
from intermediate_server.policy import CertificatePolicy, Policy, RulesPolicy, make_policy
from intermediate_server.server import codes
from intermediate_server.types import Identity

ANONYMOUS_ALL = "client certificates are not required: a peer without one is anonymous and may register any service"
ANONYMOUS_RULES = "client certificates are not required: a peer without one may register what the rules grant it"
ANONYMOUS_POLICY = "client certificates are not required: a peer without one may register what the policy grants it"
UNNAMED = "allow-unnamed-certs: a certificate without any .ztna name may register any service"

POLICY_SETTINGS = frozenset({"policy", "rules", "callout", "allow_unnamed_certs", "client_auth"})
"""Settings with which another policy comes into force."""

NOTHING_REVOKED = Revocations()

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a connection is not served."""

    code: int
    """Of the CONNECTION_CLOSE frame."""
    cause: str
    """``revoked``, ``expired``, ``anonymous`` or ``unreadable``: for counters and the audit log."""
    told: str
    """What the peer is told."""
    reason: str
    """What the log is told."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Who may be connected at all, before the policy is asked about anything."""

    revocations: Revocations = NOTHING_REVOKED
    anonymous: bool = True
    """Whether peers without a certificate are served. TLS refuses new ones; this is for those that came before."""

    def refusal(self, identity: Identity | None, chain: Sequence[CertificateId], now: datetime) -> Refusal | None:
        """Why a peer is not served, None when it is. ``now`` is aware."""
        if identity is None:
            if self.anonymous:
                return None
            told = "a client certificate is required"
            return Refusal(codes.CERTIFICATE_REQUIRED, "anonymous", told, told)
        if now >= identity.not_after:
            return expired(identity)
        revoked = self.revocations.refusal(chain)
        if revoked is not None:
            return Refusal(codes.CERTIFICATE_REVOKED, "revoked", "client certificate revoked", revoked)
        return None


def expired(identity: Identity) -> Refusal:
    """The refusal of a certificate whose time is over."""
    reason = f"the certificate expired at {identity.not_after.isoformat()}"
    return Refusal(codes.CERTIFICATE_EXPIRED, "expired", "client certificate expired", reason)


def crl_path(settings: Settings) -> Path | None:
    """The revocation list that counts: the one that is named, else the development CA's own where that CA is used."""
    if settings.crl is not None or settings.client_auth == "off" or settings.ca_cert is not None:
        return settings.crl
    return settings.state_dir / CRL


def load_gate(settings: Settings, ca_pem: bytes | None, *, current: Gate | None = None) -> Gate:
    """Read the revocation list and the deny list. Raises ``CertificateError`` and ``ConfigError``.

    ``ca_pem`` is what client certificates chain to. ``current`` is what is in force: a list that is past its time is
    no replacement for one that is not, since it may lack what was revoked since.
    """
    path = crl_path(settings)
    if path is not None and settings.crl is None and not path.exists():
        if current is not None and current.revocations.next_update is not None:
            raise ConfigError(f"revocation list {path} has gone; restore it, or what it revoked would be let in")
        path = None
    revocations = load_revocations(crl=path, deny_list=settings.deny_list, ca_pem=ca_pem)
    now = datetime.now(UTC)
    if revocations.overdue(now) and revocations.next_update is not None:
        due = revocations.next_update.isoformat()
        old = NOTHING_REVOKED if current is None else current.revocations
        if old.next_update is not None and not old.overdue(now):
            raise ConfigError(f"revocation list {path} was to be replaced by {due}; the one in force is newer")
        _log.warning("Revocation list is past its time; what it revokes stays revoked", path=str(path), due=due)
    return Gate(revocations=revocations, anonymous=settings.client_auth != "required")


def describe_policy(settings: Settings) -> str:
    """What decides about registrations, for the log and the status."""
    if settings.rules is not None:
        return f"{len(settings.rules)} rules"
    if settings.callout is not None:
        return f"callout to {settings.callout.url}"
    return "names in client certificates" if settings.policy is None else settings.policy


def check_access(settings: Settings) -> None:
    """Check lists and policy as the server does at its start, and make nothing. Raises as :func:`load_gate`."""
    authority = settings.ca_cert or settings.state_dir / CA_CERTIFICATE
    ca_pem = files.read_file(authority, "CA certificate file") if authority.exists() else None
    load_gate(settings, ca_pem)
    make_policy(settings)


def access_warnings(settings: Settings, policy: Policy) -> list[str]:
    """What an operator is to be reminded of about who gets in, one sentence each."""
    warnings = []
    if settings.client_auth != "required":
        if isinstance(policy, CertificatePolicy):
            warnings.append(ANONYMOUS_ALL)
        elif not isinstance(policy, RulesPolicy):
            warnings.append(ANONYMOUS_POLICY)
        elif policy.rules.may_allow_anonymous():
            warnings.append(ANONYMOUS_RULES)
    if settings.allow_unnamed_certs:
        warnings.append(UNNAMED)
    return warnings


def files_of(settings: Settings, config_file: Path | None) -> tuple[Path, ...]:
    """The files whose change calls for a reload."""
    named = (config_file, settings.cert, settings.key, settings.ca_cert, crl_path(settings), settings.deny_list)
    return tuple(path for path in named if path is not None)
