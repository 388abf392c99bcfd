"""Loading of policy, lists and CA: everything is read and checked before any of it is used."""

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
from intermediate_server.pki import denied, keys, load_revocations
from intermediate_server.pki.crl import CRL, is_current
from intermediate_server.pki.development import CA_CERTIFICATE
from intermediate_server.pki.inspect import subject_of
from intermediate_server.pki.material import load_authorities
from intermediate_server.pki.store import revoked_now
from intermediate_server.policy import Policy, make_policy
from intermediate_server.policy.loader import source_of

UNNAMED = "allow-unnamed-certs: a certificate without any .ztna name may register any service"

POLICY_SETTINGS = frozenset({"policy", "rules", "callout", "allow_unnamed_certs", "client_auth"})
"""Settings with which another policy comes into force."""

_log = structlog.get_logger()


def load_admission(settings: Settings, ca_pem: bytes | None, *, current: Admission | None = None) -> Admission:
    """Read the revocation lists and the deny list. Raises ``CertificateError`` and ``ConfigError``.

    ``ca_pem`` is the CA of client certificates. ``current`` is in force: an outdated list does not replace a current
    one, since it may lack later revocations.
    """
    named = () if settings.crl is None else (settings.crl,)
    authorities = [] if ca_pem is None else keys.parse_certificates(ca_pem, authority_path(settings))
    own = _own_list(settings, authorities)
    lists = named if own is None or _missing(own, authorities, current) or own in named else (*named, own)
    mine = settings.state_dir / CRL if own is not None or not authorities else None
    denying = _deny_lists(settings, current)
    revocations = load_revocations(crls=lists, deny_lists=denying, ca_pem=ca_pem, own=mine)
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
        lists=(*lists, *denying),
        # Without a CA no client is asked for a certificate, and live connections stay as they are.
        anchors=before.followed_by(authorities) if authorities else before,
        anonymous=settings.client_auth != "required",
    )


def _own_list(settings: Settings, authorities: Sequence[x509.Certificate]) -> Path | None:
    """The list of ``pki revoke``, if the CA of the state directory is trusted, by itself or in ``ca-cert``.

    CAs are compared by name and not by key: the list of another CA with the same name is an error.
    """
    if settings.client_auth == "off" or not authorities:
        return None
    if settings.ca_cert is not None:
        own = settings.state_dir / CA_CERTIFICATE
        if not _exists(own) or not _named(own, authorities):
            return None
    return settings.state_dir / CRL


def _named(own: Path, authorities: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """The CAs of the state directory that have the name of one of ``authorities``."""
    names = {item.subject for item in authorities}
    return [item for item in keys.load_certificates(own) if item.subject in names]


def _missing(own: Path, authorities: Sequence[x509.Certificate], current: Admission | None) -> bool:
    """Whether there is no such list yet. Raises ``ConfigError`` if a CA beside it should have one."""
    mine = _named(own.with_name(CA_CERTIFICATE), authorities)
    if all(is_current(own.parent, authority) for authority in mine):
        return False
    revoked = revoked_now(own.parent, datetime.now(UTC))
    before = current is not None and any(subject_of(item) in current.revocations.issuers for item in mine)
    exists = _exists(own)
    if revoked or before or (current is not None and own in current.lists and not exists):
        what = "is not of the CA beside it" if exists else "has gone"
        raise ConfigError(
            f"revocation list {own} {what}, and what it revoked would be let in; restore it, or write it again from "
            "the index with: intermediate-server pki init"
        )
    return not exists


def _deny_lists(settings: Settings, current: Admission | None) -> tuple[Path, ...]:
    """``deny-list``, and ``denied.txt`` of ``revoke`` where it is. Raises ``ConfigError`` if that one has gone."""
    own = settings.state_dir / denied.FILE
    named = () if settings.deny_list is None else (settings.deny_list,)
    if _exists(own):
        return named if own in named else (*named, own)
    if current is not None and own in current.lists and own not in named:
        raise ConfigError(f"{own} has gone, and what it denied would be let in; restore it, or make it empty")
    return named


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; run as the server's user") from None


def describe_policy(settings: Settings) -> str:
    """The kind of policy in force, for the log and the status."""
    if settings.rules is not None:
        return f"{len(settings.rules)} rules"
    if settings.callout is not None:
        return f"callout to {settings.callout.url}"
    return "names in client certificates" if settings.policy is None else settings.policy


def authority_path(settings: Settings) -> Path:
    """The file with the CA of client certificates."""
    return settings.ca_cert or settings.state_dir / CA_CERTIFICATE


def read_authority(settings: Settings) -> bytes | None:
    """The CA of client certificates, PEM; None if the development CA is yet to be made."""
    path = authority_path(settings)
    return load_authorities(path) if settings.ca_cert is not None or _exists(path) else None


def check_access(settings: Settings) -> None:
    """Check lists, policy and audit log as a start and a reload do; makes nothing. Raises as :func:`load_admission`."""
    check_audit(settings.audit_log, settings.state_dir)
    load_admission(settings, read_authority(settings))
    make_policy(settings)


def access_warnings(settings: Settings, policy: Policy) -> list[str]:
    """Warnings about open access for the operator, one sentence each."""
    warnings = []
    if settings.client_auth != "required":
        warning = policy.anonymous_warning()
        if warning is not None:
            warnings.append(warning)
    if settings.allow_unnamed_certs:
        warnings.append(UNNAMED)
    return warnings


def files_of(settings: Settings, config_file: Path | None) -> tuple[Path, ...]:
    """The files whose change calls for a reload."""
    named = (config_file, settings.cert, settings.key, settings.ca_cert, settings.crl, settings.deny_list)
    # What `revoke` and `pki rollover` write is watched before it exists.
    written = (CA_CERTIFICATE,) if settings.client_auth == "off" else (CA_CERTIFICATE, CRL, denied.FILE)
    own = tuple(settings.state_dir / name for name in written)
    policy = None if settings.policy is None else source_of(settings.policy)
    return (*(path for path in (*named, policy) if path is not None), *own)
