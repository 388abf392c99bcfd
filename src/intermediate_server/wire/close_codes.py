"""Application codes of CONNECTION_CLOSE frames (RFC 9000 section 10.2; docs/protocol.md section 1.4)."""

SHUTTING_DOWN = 0
"""The server ends; come back later."""
NEVER_REGISTERED = 1
"""Nothing was registered in time."""
BAD_CERTIFICATE = 2
"""The client's certificate cannot be read."""
ACCESS_REVOKED = 3
"""All registrations of the connection were revoked."""
CERTIFICATE_REVOKED = 4
"""The client's certificate is on a revocation list or on the deny list."""
CERTIFICATE_EXPIRED = 5
"""The client's certificate has expired."""
CERTIFICATE_REQUIRED = 6
"""Peers without a certificate are not served any more."""
UNKNOWN_AUTHORITY = 7
"""The CA of the client's certificate counts no more."""
TOO_MANY_CONNECTIONS = 8
"""The client's identity or its network is at its limit of connections."""
INTERNAL_ERROR = 9
"""A defect of this server has left the connection in an unknown state."""
NOTHING_ACKNOWLEDGED = 10
"""The client takes packets and acknowledges none; the engine closes by itself, see ``housekeeping.rs``."""
