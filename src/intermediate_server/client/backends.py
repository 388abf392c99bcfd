"""The applications behind a connector; their names are resolved again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from ipaddress import ip_address

import structlog

from intermediate_server.client.backoff import Backoff
from intermediate_server.client.hosts import look_up
from intermediate_server.client.service_address import service_addresses
from intermediate_server.client.specs import BackendSpec
from intermediate_server.engine import Backend
from intermediate_server.errors import ConnectError
from intermediate_server.logs import Repeats

RESOLVE_AGAIN = 30.0
"""Seconds between two look-ups of a backend's name."""

_log = structlog.get_logger()


class Backends:
    """The backends of some services. A backend without a resolved address refuses connections."""

    def __init__(self, specs: Sequence[BackendSpec]) -> None:
        self._specs = specs
        self._repeats = Repeats()
        self._known: dict[str, list[str]] = {}
        """The last addresses of each host, used until a look-up gives others."""
        for host, _ in (target for spec in specs for target in spec.targets):
            self._known[host] = [host] if _is_address(host) else []

    def made(self) -> list[Backend]:
        """The backends for the engine, with the addresses known now."""
        return [
            Backend(
                service=spec.service.encode(),
                protocol=spec.protocol,
                addresses=[(address, port) for host, port in spec.targets for address in self._known[host]],
                service_addresses=[str(address) for address in service_addresses(spec.service)],
                proxy_protocol=spec.proxy,
            )
            for spec in self._specs
        ]

    async def follow(self, changed: Callable[[], None]) -> None:
        """Resolve each name in a task of its own, for ever, so that a hanging look-up delays no other."""
        async with asyncio.TaskGroup() as tasks:
            for host in self._known:
                if not _is_address(host):
                    tasks.create_task(self._follow(host, changed))

    async def _follow(self, host: str, changed: Callable[[], None]) -> None:
        retry = Backoff(first=1.0, most=RESOLVE_AGAIN)
        while True:
            if await self.look_up(host):
                changed()
            if self._known[host]:
                retry.reset()
                await asyncio.sleep(RESOLVE_AGAIN)
            else:
                await asyncio.sleep(retry.delay())

    async def look_up(self, host: str) -> bool:
        """Resolve a name; returns whether its addresses have changed."""
        try:
            found = [address for address, _ in await look_up(host, 0)]
        except ConnectError as error:
            services = ", ".join(repr(spec.service) for spec in self._specs if host in dict(spec.targets))
            more = self._repeats.due(host, asyncio.get_running_loop().time())
            if more is not None:
                _log.warning(f"Backend {host} of service {services}: {error}", **more)
            return False
        if set(found) == set(self._known[host]):
            return False
        known, self._known[host] = self._known[host], found
        if known:
            _log.info(f"The addresses of backend {host} have changed", addresses=", ".join(found))
        return True


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
