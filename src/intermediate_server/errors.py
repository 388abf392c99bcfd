"""The exceptions of this package; each text says what to do next."""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

SERVER, TUN, BASE = "server", "tun", ""
"""The extras of the package: what a relay needs, what TUN interfaces need beside the rest, and the rest."""

_NAME = "intermediate-server"
_INSTALLERS = {"/pipx/venvs/": "pipx install --force", "/uv/tools/": "uv tool install"}
"""Commands of those who keep an environment for the program, by a part of its path."""


class IntermediateServerError(Exception):
    """Base of all errors raised on purpose by this package."""


class ConfigError(IntermediateServerError):
    """A setting is unknown, malformed or contradicts another."""


class MissingExtra(ConfigError, ImportError):
    """Packages of an extra, or those that everything needs, are not installed."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports: one that fails for want of an extra raises ``MissingExtra``, of the engine ``ConfigError``."""
    try:
        yield
    except ImportError as error:
        # A file that cannot be loaded has the last part of the name only.
        if error.name in ("intermediate_server._engine", "_engine"):
            raise ConfigError(
                f"the engine cannot be loaded: {error}; install a wheel that is for this system and Python, or in a"
                " checkout run: make build"
            ) from error
        if not isinstance(error, ModuleNotFoundError) or str(error.name).startswith("intermediate_server"):
            raise
        pip = f"{shlex.quote(sys.executable)} -m pip install"
        install = next((told for part, told in _INSTALLERS.items() if part in sys.prefix), pip)
        what = _installed() + (f"[{extra}]" if extra else "")
        raise MissingExtra(f"{error.name} is not installed; run: {install} {shlex.quote(what)}") from error


def _installed() -> str:
    """What was given to pip, pipx or uv: the name, or the file, as the name may be somebody else's on an index."""
    from importlib.metadata import PackageNotFoundError, distribution  # noqa: PLC0415  for this error only

    try:
        url = urlsplit(json.loads(distribution(_NAME).read_text("direct_url.json") or "{}").get("url", ""))
    except (PackageNotFoundError, ValueError):
        return _NAME
    path = Path(unquote(url.path))
    if url.scheme != "file":
        return _NAME
    return str(path) if path.exists() else path.name


class CertificateError(IntermediateServerError):
    """A certificate, key or CA cannot be read, parsed or used."""


class WireError(IntermediateServerError):
    """Bytes from the peer are not a valid ztna-v1 message."""


class TooManyCandidates(WireError):
    """An offer or an answer lists more candidates than a message may; the text says how many."""

    def __init__(self, text: str, *, session: int, offer: bool) -> None:
        super().__init__(text)
        self.session = session
        """The id that the peer chose, for an Error to it."""
        self.offer = offer
        """Whether it was an offer, hence an agent's."""


class ConnectError(IntermediateServerError):
    """A client connection could not be made."""

    def __init__(self, text: str, *, cause: str = "other") -> None:
        """``cause`` is that of ``Event.ConnectFailed``: port_closed, silent, peer, unavailable, unknown_issuer ..."""
        super().__init__(text)
        self.cause = cause

    @property
    def answered(self) -> bool:
        """Whether the relay has answered, so that the next try must end in the same way."""
        return self.cause not in ("other", "port_closed", "silent", "unavailable")


class ConnectionClosed(IntermediateServerError):
    """The connection is closed; the text says by whom and why."""


class RegistrationError(IntermediateServerError):
    """The server refused a registration or did not answer it."""

    def __init__(self, text: str, *, answered: bool = False) -> None:
        super().__init__(text)
        self.answered = answered
        """Whether the server refused it."""


class TunnelError(IntermediateServerError):
    """A local socket or TUN device cannot be opened or used."""


EdgeError = TunnelError
"""Deprecated name of ``TunnelError``."""
