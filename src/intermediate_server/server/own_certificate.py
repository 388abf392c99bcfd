"""The relay's development certificate, which is renewed in time and swapped in as a reload does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

LOOK = 3_600.0
"""Seconds between two looks at the clock, since a clock may be set and a machine may sleep; also between two tries."""


async def renew_in_time(
    renew_at: Callable[[], datetime | None],
    reload: Callable[[str], Awaitable[object]],
    *,
    clock: Callable[[], datetime],
) -> None:
    """Reload when the certificate in use is due, until cancelled.

    ``renew_at`` is the moment, aware UTC; None for a certificate that is not ours to renew. A reload makes a new one.
    """
    while True:
        moment = renew_at()
        left = LOOK if moment is None else (moment - clock()).total_seconds()
        if left <= 0:
            await reload("the development certificate is due")
            left = LOOK
        await asyncio.sleep(min(left, LOOK))
