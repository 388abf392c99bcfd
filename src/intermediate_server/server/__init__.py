"""The server: it decides about connections and registrations, and tells the engine what to forward."""

from intermediate_server.server.process import run

__all__ = ["run"]
