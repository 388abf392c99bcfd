"""Warnings before our own certificate ends."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import structlog

from intermediate_server.client.relay import Relay
from intermediate_server.errors import CertificateError
from intermediate_server.pki.keys import load_certificates
from intermediate_server.pki.lifetime import days_left

LOOK_AGAIN = 86_400.0
"""Seconds between two looks."""

_log = structlog.get_logger()


def ends(certificate: Path | str) -> datetime:
    """The end of the certificate in a file, aware UTC. Raises ``CertificateError``."""
    return load_certificates(Path(certificate))[0].not_valid_after_utc


async def warn_before_end(relay: Relay) -> None:
    """Look at our certificate each day, and warn of its end from 30 days before; runs until cancelled.

    That of a profile renews itself.
    """
    while relay.cert_file is not None:
        try:
            moment = ends(relay.cert_file)
        except CertificateError as error:
            _log.warning("Our certificate cannot be read any more", reason=str(error))
        else:
            left = days_left(moment, datetime.now(UTC))
            if left is not None:
                _log.warning(
                    f"Our certificate ends in {left} days, on {moment:%Y-%m-%d}: issue another one (pki renew), put it"
                    f" at {relay.cert_file} and send SIGHUP"
                )
        await asyncio.sleep(LOOK_AGAIN)
    await asyncio.get_running_loop().create_future()
