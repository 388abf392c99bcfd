"""SPIFFE workloads: the last part of the id names the service.

``spiffe://example.org/agent/web`` may be agent of ``web``, ``spiffe://example.org/connector/web`` its connector; the
trust domain comes from the environment. Run the server with ``policy = "spiffe:SpiffePolicy"`` and this directory on
PYTHONPATH.
"""

from __future__ import annotations

import os

from intermediate_server.policy import Allow, Decision, Deny, Limits, Policy
from intermediate_server.types import Registration, Role

AGENT_LIMITS = Limits(bytes_per_second=10_000_000)


class SpiffePolicy(Policy):
    """Grants by SPIFFE id."""

    def __init__(self) -> None:
        self.trust_domain = os.environ.get("TRUST_DOMAIN", "example.org")

    async def authorize(self, registration: Registration) -> Decision:
        identity = registration.peer.identity
        # An X509-SVID has exactly one URI; with several, who the peer is would be a choice (X509-SVID section 2).
        if identity is None or len(identity.uris) != 1:
            return Deny("no single SPIFFE id", "spiffe")
        wanted = f"spiffe://{self.trust_domain}/{registration.role.value}/{registration.service}"
        if identity.uris[0] != wanted:
            return Deny(f"its id is not {wanted}", "spiffe")
        return Allow("spiffe", limits=AGENT_LIMITS if registration.role is Role.AGENT else Limits())
