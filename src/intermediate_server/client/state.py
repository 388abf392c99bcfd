"""The state of a supervisor: its connection and the relay's answers."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from intermediate_server.client.connection import Closed, Connection


class RegistrationState(enum.Enum):
    """The relay's answer about a service."""

    WAITING = "waiting"
    ACKNOWLEDGED = "acknowledged"
    """Granted; the check for a connector is under way."""
    REGISTERED = "registered"
    REFUSED = "refused"


@dataclass(slots=True)
class State:
    """The state of a supervisor."""

    connection: Connection | None = None
    """None until the relay has let us in, and again after the end."""
    connects: int = 0
    """Connections so far on which the relay has let us in."""
    services: dict[str, RegistrationState] = field(default_factory=dict)
    silent: bool = False
    """Whether the relay has stopped answering on the connection."""
    last_error: str = ""
    """The reason of the last failed try or registration; empty once all is well."""
    ended: Closed | None = None
    """The end of the last connection, until the relay has let us in again."""

    @property
    def registered(self) -> list[str]:
        """The services whose registration is complete on the present connection."""
        return [name for name, registration in self.services.items() if registration is RegistrationState.REGISTERED]

    @property
    def usable(self) -> list[str]:
        """The services that a connector answers for now."""
        granted = (RegistrationState.ACKNOWLEDGED, RegistrationState.REGISTERED)
        return [] if self.silent else [name for name, registration in self.services.items() if registration in granted]
