"""Whoever is on call: people reach the services they are on call for, while their shift lasts.

The file named by ON_CALL_FILE holds ``{"laptop-ann": {"services": ["db"], "until": "2026-12-01T08:00:00+00:00"}}``, by
the common name of their certificates, and is read at each question. Connectors come in by the names of their
certificates, as without this policy.
"""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from intermediate_server.policy import Allow, CertificatePolicy, Decision, Deny, Policy
from intermediate_server.types import Registration, Role


class OnCallPolicy(Policy):
    """Grants agents by a file of shifts."""

    def __init__(self) -> None:
        self._file = Path(os.environ["ON_CALL_FILE"])
        self._names = CertificatePolicy(anonymous=False)

    async def authorize(self, registration: Registration) -> Decision:
        if registration.role is Role.CONNECTOR:
            return await self._names.authorize(registration)
        identity = registration.peer.identity
        if identity is None:
            return Deny("nobody is on call without a certificate", "on call")
        # A file that is missing or broken raises, and what raises denies; reading it must not hold up the loop.
        shifts: dict[str, Any] = json.loads(await asyncio.to_thread(self._file.read_text))
        shift = shifts.get(identity.subject.removeprefix("CN="))
        if shift is None or registration.service not in shift["services"]:
            return Deny("not on call for it", "on call")
        until = datetime.fromisoformat(shift["until"])
        if until <= datetime.now(UTC):
            return Deny("the shift is over", "on call")
        # The server asks again when this moment comes, and takes the registration back.
        return Allow("on call", valid_until=until)
