"""What the control plane knows about itself and shows: written by the server, read by health and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

STUCK = "the engine has stopped turning"


@dataclass(slots=True)
class Status:
    """The server's state as an operator asks for it."""

    client_auth: Literal["required", "optional", "off"]
    warnings: tuple[str, ...] = ()
    """What to keep an eye on, from the configuration: who gets in without proof."""
    policy: str = ""
    """What decides about registrations."""
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
    """Why the last reload was refused; None when it was applied."""
    crl_next_update: datetime | None = None
    """When a revocation list should have been replaced, aware UTC; None without one."""
    usage_lost: str | None = None
    """What the monthly usage have lost, as a sentence."""
    addresses_lost: Callable[[], str | None] = lambda: None
    """What is wrong with the own inner addresses that are kept, as a sentence."""
    turning: Callable[[], bool] = lambda: True
    """Whether the engine's thread has made a turn lately."""

    def ready(self) -> bool:
        """Whether new connections are welcome.

        Handshakes under way have no say: strangers could take the server out of service by them.
        """
        return self.accepting and not self.draining and self.turning()

    def crl_overdue(self) -> bool:
        """Whether a revocation list should have been replaced by now."""
        return self.crl_next_update is not None and datetime.now(UTC) >= self.crl_next_update

    def details(self, half_open: int, anonymous_clients: int = 0) -> dict[str, Any]:
        """The body of ``/readyz``; holds no secret."""
        expiry, due = self.certificate_not_after, self.crl_next_update
        lost = (self.usage_lost, self.addresses_lost())
        warnings = [*self.warnings, *(sentence for sentence in lost if sentence)]
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
            "anonymous_clients": anonymous_clients,
            "warnings": warnings,
            "half_open": half_open,
            "certificate_expires": None if expiry is None else expiry.isoformat(),
            "crl_next_update": None if due is None else due.isoformat(),
            "reloads": self.reloads,
            "reload_error": self.reload_error,
        }
