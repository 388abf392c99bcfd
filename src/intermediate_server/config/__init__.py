"""Settings of the server: what they are, where they come from, and how they are checked."""

from intermediate_server.config.loading import DEFAULT_FILES, Resolved, load, resolve, resolve_end
from intermediate_server.config.model import Settings, milliseconds

__all__ = ["DEFAULT_FILES", "Resolved", "Settings", "load", "milliseconds", "resolve", "resolve_end"]
