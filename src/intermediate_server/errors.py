"""Every exception this package raises; each text says what to do next."""


class IntermediateServerError(Exception):
    """Base of all errors raised on purpose by this package."""


class ConfigError(IntermediateServerError):
    """A setting is unknown, malformed or contradicts another."""


class CertificateError(IntermediateServerError):
    """A certificate, key or CA cannot be read, parsed or used."""


class WireError(IntermediateServerError):
    """Bytes from the peer are not a valid ztna-v1 message."""


class ConnectError(IntermediateServerError):
    """A client connection could not be made."""


class ConnectionClosed(IntermediateServerError):
    """The connection is closed; the text says by whom and why."""


class RegistrationError(IntermediateServerError):
    """The server refused a registration or did not answer it."""


class EdgeError(IntermediateServerError):
    """A local socket or TUN device cannot be opened or used."""
