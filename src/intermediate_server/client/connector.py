"""A connector: it serves private applications through the relay, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from intermediate_server.client.agent import follow_limit
from intermediate_server.client.backends import Backends
from intermediate_server.client.engine import ClientEngine
from intermediate_server.client.lifetime import follow_files, warn_before_end
from intermediate_server.client.notices import log_notices
from intermediate_server.client.relay import Relay
from intermediate_server.client.renewal import Renewal
from intermediate_server.client.service_address import check_distinct, service_addresses
from intermediate_server.client.specs import BackendSpec, check_service
from intermediate_server.client.state import State
from intermediate_server.client.status import report
from intermediate_server.client.supervisor import Supervisor
from intermediate_server.client.tasks import background
from intermediate_server.client.tun import Plan, Tun, check_installed
from intermediate_server.client.tun_watch import watch
from intermediate_server.client.tunnel import Tunnel
from intermediate_server.config.clients import ConnectorSettings
from intermediate_server.engine import Command
from intermediate_server.errors import ConfigError
from intermediate_server.types import Address, Role

RESOLVE_AGAIN = 30.0
"""Seconds between two look-ups of a backend's name."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorOptions:
    """The task of a connector: backends, or with ``tun`` this host itself."""

    relay: Relay
    backends: tuple[BackendSpec, ...] = ()
    tun: str | None = None
    """Name of a TUN interface that gets the packets of ``services`` in place of backends."""
    services: tuple[str, ...] = ()
    """Services of the TUN interface: each has its service addresses there."""
    rotate_key: bool = False
    """Whether a renewal of the profile's certificate comes with a new key."""

    @classmethod
    def of(cls, settings: ConnectorSettings, *, profile: Path | None = None) -> ConnectorOptions:
        """The options of the settings; ``profile`` is used where they name no relay.

        Raises ``ConfigError`` and ``ProfileError``.
        """
        relay = Relay.of(settings, default=profile)
        if settings.tun:
            check_installed()
            names = tuple(check_service(text.partition("=")[0]) for text in settings.service)
            return cls(relay=relay, tun=settings.tun_name, services=names, rotate_key=settings.rotate_key)
        backends = tuple(each for text in settings.service for each in BackendSpec.parse_all(text))
        return cls(relay=relay, backends=backends, rotate_key=settings.rotate_key)

    def all_services(self) -> tuple[str, ...]:
        """Every service, in the order they were named. Raises ``ConfigError``."""
        if (self.tun is not None) == bool(self.backends):
            raise ConfigError("a connector serves backends (--service web=tcp://127.0.0.1:8080) or, with --tun, names")
        named = [(each.service, each.protocol) for each in self.backends] or [(name, "") for name in self.services]
        if not named or len(set(named)) < len(named):
            raise ConfigError("name each service once, with all of its backends separated by commas")
        names = tuple(dict.fromkeys(name for name, _ in named))
        check_distinct(names, end="connector")
        return names


class Connector:
    """A running connector. Made by :func:`serving`."""

    def __init__(
        self, options: ConnectorOptions, supervisor: Supervisor, renewal: Renewal, tunnel: Tunnel, tun: Tun | None
    ) -> None:
        self.options = options
        self.tunnel = tunnel
        self.tun = tun
        self._supervisor = supervisor
        self._renewal = renewal

    @property
    def state(self) -> State:
        """The state of the connection and of the registrations."""
        return self._supervisor.state

    async def wait_until(self, predicate: Callable[[State], bool]) -> None:
        """Wait until ``predicate`` is true of the state."""
        await self._supervisor.wait_until(predicate)

    async def wait_ready(self) -> None:
        """Wait until every service is registered."""
        await self._supervisor.wait_until(lambda state: len(state.registered) == len(state.services))

    def renew(self) -> None:
        """Read the certificate files again and connect with them."""
        self._supervisor.renew()

    async def status(self) -> dict[str, Any]:
        """The output of ``connector status``."""
        data = await report("connector", self.options.relay, self._supervisor, self.tunnel)
        data |= self._renewal.report()
        backends: dict[str, list[str]] = {}
        for spec in self.options.backends:
            backends.setdefault(spec.service, []).extend(spec.urls)
        data["backends"] = backends
        if self.tun is not None:
            data["interface"] = self.tun.name
            data["interface_mtu"] = self.tun.mtu
        return data


@asynccontextmanager
async def serving(options: ConnectorOptions, *, engine: ClientEngine | None = None) -> AsyncIterator[Connector]:
    """A connector that connects, stays connected, and ends with the block.

    Raises ``ConfigError`` and ``TunnelError`` when it cannot begin, ``TunnelError`` out of the block when its interface
    or the engine fails later.
    """
    services = options.all_services()
    async with contextlib.AsyncExitStack() as stack:
        if engine is None:
            engine = await stack.enter_async_context(ClientEngine())
        tun: Tun | None = None
        backends = Backends(options.backends)
        if options.tun is None:
            tunnel = await engine.open_tunnel(
                lambda number: Command.OpenBackends(number, backends.made(), try_once=True)
            )
        else:
            own = [address for service in services for address in service_addresses(service)]
            # Only these are routed into the interface, and let in by it.
            pools = options.relay.pools
            tun = Tun(Plan(options.tun, own, pools, pools))
            stack.callback(tun.close)
            fd = tun.fd
            served = [str(address) for address in own]
            agents = [str(pool) for pool in pools]
            tunnel = await engine.open_tunnel(lambda number: Command.OpenTun(number, fd, own=served, agents=agents))
        stack.callback(tunnel.close)
        renewal = Renewal(engine, options.relay, rotate_key=options.rotate_key)
        supervisor = Supervisor(
            engine,
            options.relay,
            role=Role.CONNECTOR,
            services=services,
            tunnel=tunnel,
            ready=renewal.ready,
            on_limit=None if tun is None else follow_limit(tun, services, bare=True),
        )
        connector = Connector(options, supervisor, renewal, tunnel, tun)

        def changed() -> None:
            made = backends.made()
            tunnel.keep_backends(
                {(item.service.decode(), Address.of(each)) for item in made for each in item.addresses}
            )
            tunnel.submit(Command.OpenBackends(tunnel.number, made, try_once=True))

        tasks = [
            supervisor.run(),
            log_notices(tunnel),
            warn_before_end(options.relay),
            follow_files(options.relay, supervisor.renew),
            renewal.run(supervisor.renew, supervisor.state),
            backends.follow(changed),
            tunnel.until_failed(),
            engine.until_failed(),
        ]
        if tun is not None:
            tasks.append(watch(tun, supervisor.relay_hosts))
        async with background(*tasks):
            yield connector
