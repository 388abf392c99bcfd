"""Log lines about a tunnel's notices: a fault at once, and a lasting or recurring one now and then."""

from __future__ import annotations

import asyncio

import structlog

from intermediate_server.client.tunnel import Notice, Tunnel
from intermediate_server.logs import Repeats

WELL = {
    "connector": "Service {service!r} has a connector again",
    "backend": "Service {service!r}: {address} takes connections again",
    "port": "Port tcp {address} of service {service!r} is open again",
}
WRONG = {
    "connector": "Service {service!r} {error}",
    "flow": "Service {service!r}: {error}; the connector's log says why",
    "backend": "Service {service!r}: {address} {error}",
    "port": "Port tcp {address} of service {service!r} {error}",
}
"""The line of each subject."""

_log = structlog.get_logger()


async def log_notices(tunnel: Tunnel) -> None:
    """Log the notices of a tunnel, for ever."""
    loop = asyncio.get_running_loop()
    # Half a second less: the engine has a pause of half a minute between two notices of a lasting failure.
    repeats = Repeats(interval=29.5)
    wrong: set[tuple[str, str, str]] = set()
    async for notice in tunnel.notices():
        thing = (notice.subject, notice.service, str(notice.address))
        if notice.error is None and thing not in wrong:
            continue
        line = (*thing, notice.error)
        if repeats.due(line, loop.time()) is None:
            continue
        _write(notice)
        if notice.error is None:
            wrong.discard(thing)
        else:
            wrong.add(thing)


def _write(notice: Notice) -> None:
    templates = WELL if notice.error is None else WRONG
    text = templates[notice.subject].format(service=notice.service, address=notice.address, error=notice.error)
    if notice.error is None:
        _log.info(text)
    else:
        _log.warning(text)
