"""Our own certificate and key: warnings before the end, and the change to others in their files."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import structlog

from intermediate_server.client.relay import Relay
from intermediate_server.errors import CertificateError, ConfigError
from intermediate_server.file_watch import Watch
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
            leaf = load_certificates(Path(relay.cert_file))[0]
        except CertificateError as error:
            _log.warning("Our certificate cannot be read any more", reason=str(error))
        else:
            moment = leaf.not_valid_after_utc
            left = days_left(leaf.not_valid_before_utc, moment, datetime.now(UTC))
            if left is not None:
                _log.warning(
                    f"Our certificate ends in {left} days, on {moment:%Y-%m-%d}: issue another one (pki renew) and put"
                    f" it at {relay.cert_file}, which is watched"
                )
        await asyncio.sleep(LOOK_AGAIN)
    await asyncio.get_running_loop().create_future()


async def follow_files(relay: Relay, renew: Callable[[], None]) -> None:
    """Watch our certificate and key until cancelled, and call ``renew`` when another pair is there.

    The files are only read. A pair that cannot be used, since it is half-written or half-replaced, waits for the next
    change, with one warning.
    """
    paths = [Path(path) for path in (relay.cert_file, relay.key_file) if path is not None]
    used, warned = _digest(paths), False

    async def changed() -> None:
        nonlocal used, warned
        watch.take()
        found = await asyncio.to_thread(_digest, paths)
        if found == used:
            warned = False
            return
        try:
            await asyncio.to_thread(relay.check)
        except (CertificateError, ConfigError) as error:
            if not warned:
                _log.warning("The new certificate and key wait until they fit each other", reason=str(error))
            warned = True
        else:
            used, warned = found, False
            renew()

    watch = Watch(lambda: paths, changed)
    watch.take()
    await watch.run()


def _digest(paths: list[Path]) -> list[bytes | None]:
    """What the files hold; None for one that cannot be read."""
    digests: list[bytes | None] = []
    for path in paths:
        try:
            digests.append(hashlib.sha256(path.read_bytes()).digest())
        except OSError:
            digests.append(None)
    return digests
