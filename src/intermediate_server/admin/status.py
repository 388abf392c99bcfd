"""The status of the control plane: written by the server, read by health and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

STUCK = "the engine has stopped turning"


@dataclass(slots=True)
class Status:
    """The state of the server for its operator."""

    client_auth: Literal["required", "optional", "off"]
    warnings: tuple[str, ...] = ()
    """Warnings about the configuration, such as open access."""
    policy: str = ""
    """The kind of policy in force."""
    accepting: bool = False
    draining: bool = False
    addresses: tuple[str, ...] = ()
    external_ip: str | None = None
    certificate_not_after: datetime | None = None
    """The end of the server certificate's validity, aware UTC."""
    reloads: int = 0
    """Reloads that were applied."""
    reload_failures: int = 0
    """Reloads that were refused."""
    reload_error: str | None = None
    """The error of the last reload; None when it was applied."""
    crl_next_update: datetime | None = None
    """The moment at which a revocation list is outdated, aware UTC; None without a list."""
    usage_lost: str | None = None
    """A sentence about lost counts of the monthly usage."""
    addresses_lost: Callable[[], str | None] = lambda: None
    """A sentence about trouble with the reserved inner addresses."""
    joining: Callable[[], tuple[str, tuple[str, ...]]] = lambda: ("off", ())
    """``on`` or why nobody can join, and sentences about why no certificates can be issued now."""
    turning: Callable[[], bool] = lambda: True
    """Whether the engine's thread has made a turn lately."""

    def ready(self) -> bool:
        """Whether new connections are welcome.

        Handshakes under way do not count, or strangers could take the server out of service.
        """
        return self.accepting and not self.draining and self.turning()

    def crl_overdue(self) -> bool:
        """Whether a revocation list is outdated."""
        return self.crl_next_update is not None and datetime.now(UTC) >= self.crl_next_update

    def details(self, half_open: int, anonymous_clients: int = 0) -> dict[str, Any]:
        """The body of ``/readyz``; holds no secret."""
        expiry, due = self.certificate_not_after, self.crl_next_update
        lost = (self.usage_lost, self.addresses_lost())
        warnings = [*self.warnings, *(sentence for sentence in lost if sentence)]
        joining, troubles = self.joining()
        warnings += troubles
        if self.crl_overdue():
            warnings.append("the revocation list is past its time; write a new one")
        if not self.turning():
            warnings.append(STUCK)
        return {
            "ready": self.ready(),
            "accepting": self.accepting,
            "draining": self.draining,
            "addresses": list(self.addresses),
            "external_ip": self.external_ip,
            "client_auth": self.client_auth,
            "policy": self.policy,
            "joining": joining,
            "anonymous_clients": anonymous_clients,
            "warnings": warnings,
            "half_open": half_open,
            "certificate_expires": None if expiry is None else expiry.isoformat(),
            "crl_next_update": None if due is None else due.isoformat(),
            "reloads": self.reloads,
            "reload_error": self.reload_error,
        }
