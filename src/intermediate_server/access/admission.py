"""Admission: the peers that may be connected, before the policy is asked about anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from intermediate_server.pki import Anchors, CertificateId, Revocations
from intermediate_server.types import Identity
from intermediate_server.wire import close_codes

NOTHING_REVOKED = Revocations()
NO_ANCHORS = Anchors()


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason and the close of a connection that is not served."""

    code: int
    """Of the CONNECTION_CLOSE frame."""
    cause: str
    """``revoked``, ``expired``, ``anonymous``, ``authority``, ``unreadable``, ``connections``, ``replaced`` or
    ``operator``: for counters and the audit log."""
    peer_message: str
    """For the CONNECTION_CLOSE frame."""
    reason: str
    """For the log."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The rules of admission; see the module."""

    revocations: Revocations = NOTHING_REVOKED
    lists: tuple[Path, ...] = ()
    """The CRLs and deny lists in force; a reload that finds one of our own gone is refused."""
    anchors: Anchors = NO_ANCHORS
    anonymous: bool = True
    """Whether peers without a certificate are served. TLS refuses new ones; this ends those that came before."""

    def refusal(self, identity: Identity | None, chain: Sequence[CertificateId], now: datetime) -> Refusal | None:
        """The refusal of a peer, None if it is served. ``now`` is aware."""
        if identity is None:
            if self.anonymous:
                return None
            message = "a client certificate is required"
            return Refusal(close_codes.CERTIFICATE_REQUIRED, "anonymous", message, message)
        if now >= identity.not_after:
            return expired(identity)
        revoked = self.revocations.refusal(chain)
        if revoked is not None:
            return Refusal(close_codes.CERTIFICATE_REVOKED, "revoked", "client certificate revoked", revoked)
        return None


UNKNOWN_AUTHORITY = Refusal(
    close_codes.UNKNOWN_AUTHORITY,
    "authority",
    "client certificate of a CA that is not trusted any more",
    "the certificate chains to no CA that counts now",
)


def expired(identity: Identity) -> Refusal:
    """The refusal of an expired certificate."""
    reason = f"the certificate expired at {identity.not_after.isoformat()}"
    return Refusal(close_codes.CERTIFICATE_EXPIRED, "expired", "client certificate expired", reason)
