"""A policy that asks a web service of the operator's about each registration, and denies when it cannot."""

from intermediate_server.policy.callout.policy import CalloutPolicy

__all__ = ["CalloutPolicy"]
