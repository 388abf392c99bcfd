"""A policy that asks the operator's web service about each registration, and denies without an answer."""

from intermediate_server.errors import SERVER, needs

with needs(SERVER):
    from intermediate_server.policy.callout.policy import CalloutPolicy

__all__ = ["CalloutPolicy"]
