"""Settings of the server: what they are, where they come from, and how they are checked."""

from intermediate_server.config.loading import Resolved, resolve, resolve_client
from intermediate_server.config.model import Settings, milliseconds

__all__ = ["Resolved", "Settings", "milliseconds", "resolve", "resolve_client"]
