"""Log lines and audit records of failed handshakes, bounded because anybody may fail any number of them."""

from __future__ import annotations

import asyncio

import structlog

from intermediate_server.audit import Audit
from intermediate_server.engine import Event
from intermediate_server.logs import Repeats
from intermediate_server.types import Address

_ALERTS = range(0x100, 0x200)
"""Transport errors that are TLS alerts (RFC 9001 section 4.8)."""

_SENTENCES = {
    "no_certificate": "it shows no certificate, and client-auth is required",
    "unknown_issuer": "its certificate is not signed by a CA of clients (--ca-cert)",
    "expired": "its certificate has expired",
    "not_yet_valid": "its certificate begins later: one of the two clocks is wrong",
    "wrong_purpose": "its certificate is not for clients (extended key usage clientAuth)",
    "authority_as_peer": "it shows a CA's certificate (CA:TRUE) as its own",
}

_log = structlog.get_logger()


class FailedHandshakes:
    """One log line for each address and reason in half a minute, one audit record for each that the engine reports."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._repeats = Repeats()
        self._told = 0
        """Failed handshakes that have been recorded, one by one or counted."""
        self._known = 0
        """The engine's count at the last look."""

    def failed(self, event: Event.HandshakeFailed) -> None:
        """Write down one failure."""
        self._told += 1
        address, reason = Address.of(event.remote), _sentence(event)
        self._audit.record("rejected", address, cause="handshake", reason=reason)
        more = self._repeats.due((address.host, reason), asyncio.get_running_loop().time())
        if more is not None:
            _log.info(f"Handshake failed with {address}", reason=reason, **more)

    def count(self, total: int, *, last: bool = False) -> None:
        """Take the engine's count of failed handshakes and record how many it has not reported one by one.

        Reports of this second may still be on their way: each look but the ``last`` compares with the count of the look
        before.
        """
        settled, self._known = total if last else self._known, total
        more = settled - self._told
        if more > 0:
            self._told += more
            self._audit.record("rejected", None, cause="handshake", count=more)
            _log.info("More handshakes failed", count=more)


def _sentence(event: Event.HandshakeFailed) -> str:
    if event.cause == "peer":
        if event.code in _ALERTS:
            return f"it refuses the server's certificate or TLS (alert {event.code - _ALERTS.start})"
        return f"it gave up (code {event.code}): {event.reason or 'no reason given'}"
    return _SENTENCES.get(event.cause, event.reason)
