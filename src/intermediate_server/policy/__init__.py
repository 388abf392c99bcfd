"""Policies: the interface, the policies of the server itself, and the guard that runs one."""

from intermediate_server.policy.base import UNLIMITED, Allow, Candidate, Decision, Deny, Limits, Policy
from intermediate_server.policy.certificate import CertificatePolicy
from intermediate_server.policy.guard import REAUTHORIZATIONS, Guard
from intermediate_server.policy.loader import load_policy, make_policy
from intermediate_server.policy.rules import RulesPolicy

__all__ = [
    "REAUTHORIZATIONS",
    "UNLIMITED",
    "Allow",
    "Candidate",
    "CertificatePolicy",
    "Decision",
    "Deny",
    "Guard",
    "Limits",
    "Policy",
    "RulesPolicy",
    "load_policy",
    "make_policy",
]
