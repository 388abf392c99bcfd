"""The server: it decides about connections and registrations, and sets the routes of the engine."""

from intermediate_server.server.process import run

__all__ = ["run"]
