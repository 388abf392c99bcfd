"""Who may register what: the policy interface, the certificate policy, and the guard that runs a policy."""

from intermediate_server.policy.base import Allow, Candidate, Decision, Deny, Policy
from intermediate_server.policy.certificate import CertificatePolicy
from intermediate_server.policy.guard import Guard
from intermediate_server.policy.loader import load_policy

__all__ = ["Allow", "Candidate", "CertificatePolicy", "Decision", "Deny", "Guard", "Policy", "load_policy"]
