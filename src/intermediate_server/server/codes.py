"""Application codes of the CONNECTION_CLOSE frames this server sends (RFC 9000 section 10.2)."""

SHUTTING_DOWN = 0
"""The server ends; come back later."""
NEVER_REGISTERED = 1
"""Nothing was registered in time."""
BAD_CERTIFICATE = 2
"""The client's certificate cannot be read."""
