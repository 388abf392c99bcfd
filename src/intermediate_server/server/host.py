"""The parts of a host that a relay can do without: a writable state directory, the port of health and metrics."""

from __future__ import annotations

import asyncio
import errno
import re
from pathlib import Path

import structlog

from intermediate_server.admin import AdminServer
from intermediate_server.config import Settings
from intermediate_server.errors import CertificateError
from intermediate_server.join import relay
from intermediate_server.pki import files
from intermediate_server.types import Address

TRY_AGAIN = 5.0
"""Seconds after which a taken port is tried again."""
STOP = 1.5
"""Seconds for the HTTP server to finish requests under way."""

STATELESS = (
    "the state directory cannot be written: monthly usage count from zero after a restart, and clients then wait for "
    "their idle timeout"
)

_ADVICE = {
    errno.EADDRINUSE: "another program has it, a relay perhaps; name another port with --port",
    errno.EADDRNOTAVAIL: "this host has no such address; name one with --bind",
    errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE; name another with --port",
    errno.EAFNOSUPPORT: "this kernel has no IPv6; name an IPv4 address with --bind",
}
"""The remedy for an error of the system while the listener is bound."""

_log = structlog.get_logger()


def open_state(settings: Settings) -> Path | None:
    """The state directory, made if missing and ready to be written to.

    None if it cannot be had and is not needed, since certificate, key and CA are all named. Raises ``CertificateError``
    if it is needed.
    """
    try:
        with files.locked(settings.state_dir):
            return settings.state_dir
    except CertificateError as error:
        if settings.cert is None or (settings.ca_cert is None and settings.client_auth != "off"):
            raise
        _log.warning("Nothing is kept over a restart", reason=str(error))
        return None


def advise(reason: str) -> str:
    """The engine's error about a listener that cannot be made, with the remedy."""
    number = re.search(r"\(os error ([0-9]+)\)", reason)
    advice = _ADVICE.get(int(number[1])) if number else None
    return reason if advice is None else f"{reason}; {advice}"


class AdminPort:
    """Serves health and metrics as soon as their port is free; the relay does not wait for it."""

    def __init__(self, admin: AdminServer, host: str, port: int) -> None:
        self._admin = admin
        self._host = host
        self._port = port
        self._bound = False
        self._told = False

    def bind(self) -> None:
        """Try to bind the port; logs the first failure."""
        try:
            address = Address.of(self._admin.bind(self._host, self._port))
        except OSError as error:
            if not self._told:
                self._told = True
                _log.warning(
                    f"Health and metrics wait for {self._host} port {self._port}; free it, or name another with "
                    "--metrics-port and --metrics-bind",
                    reason=error.strerror or str(error),
                )
            return
        self._bound = True
        _log.info(f"Admin listening on http://{address}", host=self._host, port=address.port)

    async def serve(self) -> None:
        """Serve until :meth:`stop`; never raises."""
        while not self._bound:
            await asyncio.sleep(TRY_AGAIN)
            self.bind()
        try:
            await self._admin.serve()
        except Exception as error:
            _log.error("Health and metrics have stopped", exc_info=error)

    async def stop(self, serving: asyncio.Task[None]) -> None:
        """Finish requests under way within a moment, and end the task of :meth:`serve`."""
        self._admin.stop()
        if self._bound:
            await asyncio.wait((serving,), timeout=STOP)
        serving.cancel()


def note_relay(settings: Settings, port: int) -> None:
    """Leave the settings in force for ``token create``, which may run beside the server without its flags."""
    try:
        relay.note(settings, port)
    except CertificateError as error:
        _log.warning("Commands beside the server read its configuration file only", reason=str(error))
