"""What decides about access, read and checked as a whole before any of it is used."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog
from cryptography import x509

from intermediate_server.access.admission import NO_ANCHORS, NOTHING_REVOKED, Admission
from intermediate_server.audit import check_audit
from intermediate_server.config import Settings
from intermediate_server.errors import ConfigError
from intermediate_server.pki import index, keys, load_revocations
from intermediate_server.pki.crl import CRL, is_current
from intermediate_server.pki.development import CA_CERTIFICATE
from intermediate_server.pki.inspect import subject_of
from intermediate_server.pki.material import load_authorities
from intermediate_server.policy import Policy, make_policy
from intermediate_server.policy.loader import source_of

IRREVOCABLE = "no list of revoked certificates: a lost one is let in until it expires; set crl or deny-list"
UNNAMED = "allow-unnamed-certs: a certificate without any .ztna name may register any service"

POLICY_SETTINGS = frozenset({"policy", "rules", "callout", "allow_unnamed_certs", "client_auth"})
"""Settings with which another policy comes into force."""

_log = structlog.get_logger()


def load_admission(settings: Settings, ca_pem: bytes | None, *, current: Admission | None = None) -> Admission:
    """Read the revocation lists and the deny list. Raises ``CertificateError`` and ``ConfigError``.

    ``ca_pem`` is what client certificates chain to. ``current`` is what is in force: a list that is past its time is
    no replacement for one that is not, since it may lack what was revoked since.
    """
    named = () if settings.crl is None else (settings.crl,)
    authorities = [] if ca_pem is None else keys.parse_certificates(ca_pem, authority_path(settings))
    own = _own_list(settings, authorities)
    lists = named if own is None or _missing(own, current) or own in named else (*named, own)
    mine = settings.state_dir / CRL if own is not None or not authorities else None
    revocations = load_revocations(crls=lists, deny_list=settings.deny_list, ca_pem=ca_pem, own=mine)
    now = datetime.now(UTC)
    if revocations.overdue(now) and revocations.next_update is not None:
        due, where = revocations.next_update.isoformat(), ", ".join(map(str, lists))
        old = NOTHING_REVOKED if current is None else current.revocations
        if old.next_update is not None and not old.overdue(now):
            raise ConfigError(f"revocation list {where} was to be replaced by {due}; the one in force is newer")
        _log.warning("Revocation list is past its time; what it revokes stays revoked", path=where, due=due)
    before = NO_ANCHORS if current is None else current.anchors
    return Admission(
        revocations=revocations,
        lists=lists,
        revocable=own is not None or settings.crl is not None or settings.deny_list is not None,
        # Without a CA nobody new is asked for a certificate, and nobody is judged anew.
        anchors=before.followed_by(authorities) if authorities else before,
        anonymous=settings.client_auth != "required",
    )


def _own_list(settings: Settings, authorities: Sequence[x509.Certificate]) -> Path | None:
    """The list that ``pki revoke`` writes, where the CA of the state directory counts, by itself or in ``ca-cert``.

    Names of CAs are compared, not keys: if another CA has the name, its list is an error and not left aside.
    """
    if settings.client_auth == "off" or not authorities:
        return None
    if settings.ca_cert is not None:
        own = settings.state_dir / CA_CERTIFICATE
        if not _exists(own):
            return None
        subject = keys.load_certificates(own)[0].subject
        if all(item.subject != subject for item in authorities):
            return None
    return settings.state_dir / CRL


def _missing(own: Path, current: Admission | None) -> bool:
    """Whether there is no such list yet. Raises ``ConfigError`` if there should be one of the CA beside it."""
    authority = keys.load_certificates(own.with_name(CA_CERTIFICATE))[0]
    if is_current(own.parent, authority):
        return False
    revoked = any(entry.revoked_at and entry.not_after > datetime.now(UTC) for entry in index.read(own.parent))
    before = current is not None and subject_of(authority) in current.revocations.issuers
    exists = _exists(own)
    if revoked or before or (current is not None and own in current.lists and not exists):
        what = "is not of the CA beside it" if exists else "has gone"
        raise ConfigError(
            f"revocation list {own} {what}, and what it revoked would be let in; restore it, or write it again from "
            "the index with: intermediate-server pki init"
        )
    return not exists


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; run as the server's user") from None


def describe_policy(settings: Settings) -> str:
    """What decides about registrations, for the log and the status."""
    if settings.rules is not None:
        return f"{len(settings.rules)} rules"
    if settings.callout is not None:
        return f"callout to {settings.callout.url}"
    return "names in client certificates" if settings.policy is None else settings.policy


def authority_path(settings: Settings) -> Path:
    """Where the CA of client certificates is."""
    return settings.ca_cert or settings.state_dir / CA_CERTIFICATE


def read_authority(settings: Settings) -> bytes | None:
    """The CA of client certificates without making one; None where the development CA is yet to be made."""
    path = authority_path(settings)
    return load_authorities(path) if settings.ca_cert is not None or _exists(path) else None


def check_access(settings: Settings) -> None:
    """Check lists, policy and audit log as a start and a reload do; makes nothing. Raises as :func:`load_admission`."""
    check_audit(settings.audit_log)
    load_admission(settings, read_authority(settings))
    make_policy(settings)


def access_warnings(settings: Settings, policy: Policy, admission: Admission) -> list[str]:
    """What an operator is to be reminded of about who gets in, one sentence each."""
    warnings = []
    if settings.client_auth != "required":
        warning = policy.anonymous_warning()
        if warning is not None:
            warnings.append(warning)
    if settings.allow_unnamed_certs:
        warnings.append(UNNAMED)
    if settings.client_auth != "off" and not admission.revocable:
        warnings.append(IRREVOCABLE)
    return warnings


def files_of(settings: Settings, config_file: Path | None) -> tuple[Path, ...]:
    """The files whose change calls for a reload."""
    named = (config_file, settings.cert, settings.key, settings.ca_cert, settings.crl, settings.deny_list)
    # The list that `pki revoke` writes: watched before there is one.
    own = () if settings.client_auth == "off" else (settings.state_dir / CRL,)
    policy = None if settings.policy is None else source_of(settings.policy)
    return (*(path for path in (*named, policy) if path is not None), *own)
