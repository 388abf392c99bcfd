"""Settings of the programs: their model, their sources and their checks."""

from intermediate_server.config.loading import Resolved, resolve, resolve_client
from intermediate_server.config.model import Settings, milliseconds

__all__ = ["Resolved", "Settings", "milliseconds", "resolve", "resolve_client"]
