"""An agent: local ports or a TUN interface whose traffic reaches services through the relay."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import structlog
from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.client.engine import ClientEngine
from intermediate_server.client.hosts import plain_host, split_server
from intermediate_server.client.lifetime import follow_files, warn_before_end
from intermediate_server.client.notices import log_notices
from intermediate_server.client.profile import Profile
from intermediate_server.client.relay import Relay
from intermediate_server.client.renewal import Renewal
from intermediate_server.client.service_address import check_distinct, service_addresses
from intermediate_server.client.service_names import listed
from intermediate_server.client.specs import ForwardSpec, MapSpec, check_service
from intermediate_server.client.state import State
from intermediate_server.client.status import report
from intermediate_server.client.supervisor import Supervisor
from intermediate_server.client.tasks import background
from intermediate_server.client.tun import IPAddress, Plan, Tun, check_installed
from intermediate_server.client.tun_watch import watch
from intermediate_server.client.tunnel import Tunnel
from intermediate_server.config.clients import AgentSettings
from intermediate_server.engine import Command, Forward, TunMap, inner_address
from intermediate_server.errors import ConfigError, ConnectError, TunnelError
from intermediate_server.logs import Repeats
from intermediate_server.pki import identity_of
from intermediate_server.pki.keys import load_certificates
from intermediate_server.types import Role

ANONYMOUS_INNER = ("100.64.0.1", "fd64:7a74:6e61::1")
"""Inner addresses of an agent without a certificate, as of the clients in the field."""
WRAPPER = 2
"""Bytes around a service-routed packet, beside the service id (docs/protocol.md section 2.3)."""
UNPRIVILEGED_PORT = 1
"""Inner destination port of a forward from port 0, which names none."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class TunOptions:
    """A TUN interface of an agent."""

    name: str = "ztna%d"
    maps: tuple[MapSpec, ...] = ()
    """Mapped addresses of services, beside the service addresses."""
    addresses: tuple[IPAddress, ...] = ()
    """Inner addresses of this agent; by default the ones that the relay leases to its key."""
    default_service: str | None = None
    """The service of all other destinations; its packets may come from any address."""
    hosts: Path | None = None
    """A hosts file that gets the names of services."""

    @classmethod
    def of(cls, settings: AgentSettings) -> TunOptions | None:
        """The interface of the settings, None without ``tun``. Raises ``ConfigError``, without ``tun`` too."""
        if settings.tun:
            check_installed()
        elif settings.hosts is not None:
            raise ConfigError("--hosts names the service addresses, which this host has with --tun only: add it")
        made = cls(
            name=settings.tun_name,
            maps=tuple(map(MapSpec.parse, settings.map)),
            addresses=settings.address,
            default_service=None if settings.default_service is None else check_service(settings.default_service),
            hosts=settings.hosts,
        )
        return made if settings.tun else None

    def named(self) -> list[str]:
        """The services of maps and default."""
        named = [item.service for item in self.maps]
        return named if self.default_service is None else [*named, self.default_service]

    def routes(self, services: Sequence[str]) -> list[TunMap]:
        """The address of each service in each family: its mapped address, else its service address.

        A service has only one of a family, since answers can get only one source. Raises ``ConfigError``.
        """
        by_hand = {(item.service, item.address.version): item.address for item in self.maps}
        if len(by_hand) < len(self.maps):
            raise ConfigError("a service can have one mapped address of each family")
        routes: dict[IPAddress, TunMap] = {}
        for service in services:
            for derived in service_addresses(service):
                address = by_hand.get((service, derived.version), derived)
                if address in routes:
                    raise ConfigError(f"{address} cannot stand for two services")
                routes[address] = TunMap(address=str(address), service=service.encode(), destination=str(derived))
        return list(routes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """The task of an agent: forwards or a TUN interface, not both."""

    relay: Relay
    forwards: tuple[ForwardSpec, ...] = ()
    services: tuple[str, ...] = ()
    """Services to register for beside those of forwards and maps."""
    tun: TunOptions | None = None
    rotate_key: bool = False
    """Whether a renewal of the profile's certificate comes with a new key."""

    @classmethod
    def of(cls, settings: AgentSettings, *, profile: Path | None = None) -> AgentOptions:
        """The options of the settings; ``profile`` is used where they name no relay.

        With a profile its services are the default, and without ``tun`` each gets a free local TCP port. Raises
        ``ConfigError`` and ``ProfileError``.
        """
        tun = TunOptions.of(settings)
        relay = Relay.of(settings, default=profile)
        forwards = tuple(map(ForwardSpec.parse, settings.forward))
        services = tuple(map(check_service, settings.service))
        if relay.profile is not None:
            if not (services or forwards or (tun is not None and tun.named())):
                services = _services_of(relay.profile)
            if not forwards and tun is None:
                forwards = tuple(ForwardSpec("tcp", "127.0.0.1", 0, service) for service in services)
        return cls(tun=tun, relay=relay, forwards=forwards, services=services, rotate_key=settings.rotate_key)

    def all_services(self) -> tuple[str, ...]:
        """Every service to register for, each once, in the order they were named. Raises ``ConfigError``."""
        tunnelled = self.tun.named() if self.tun is not None else []
        named = [*self.services, *(item.service for item in self.forwards), *tunnelled]
        if not named:
            raise ConfigError("an agent needs a service: name one with --forward, --map or --service")
        if self.forwards and self.tun is not None:
            raise ConfigError("--forward and --tun exclude each other; run two agents")
        if not self.forwards and self.tun is None:
            raise ConfigError("an agent needs a way in: give --forward tcp:127.0.0.1:8080=SERVICE, or --tun")
        services = tuple(dict.fromkeys(named))
        check_distinct(services, end="agent")
        if self.tun is not None:
            self.tun.routes(services)
            self._check_addresses(self.tun)
        return services

    def _check_addresses(self, tun: TunOptions) -> None:
        """Raises ``ConfigError`` when an address of the interface is needed for another purpose.

        A relay given by name is checked when it is dialled: see ``tun_watch``.
        """
        with contextlib.suppress(ValueError, ConnectError):
            relay = ip_address(plain_host(split_server(self.relay.server)[0]))
            for item in tun.maps:
                if item.address == relay:
                    raise ConfigError(
                        f"{item.address} is the relay's own address and cannot stand for service {item.service!r}:"
                        " the packets to the relay would go into the tunnel; map another address"
                    )
            if relay in tun.addresses:
                raise ConfigError(f"{relay} is the relay's own address and cannot be ours; leave --address out")
        for item in tun.maps:
            if item.address in tun.addresses:
                raise ConfigError(
                    f"{item.address} is our own address (--address) and cannot stand for {item.service!r}"
                )


def _services_of(path: Path | str) -> tuple[str, ...]:
    """The services of a profile by name. Raises ``ConfigError`` when it has none."""
    services = tuple(service for service in Profile.load(Path(path)).services if service != "*")
    if not services:
        raise ConfigError(
            f"the profile {path} names no service: give those to reach, as --forward tcp:127.0.0.1:8080=SERVICE"
        )
    return tuple(map(check_service, services))


class Agent:
    """A running agent. Made by :func:`running`."""

    def __init__(
        self, options: AgentOptions, supervisor: Supervisor, renewal: Renewal, tunnel: Tunnel, tun: Tun | None
    ) -> None:
        self.options = options
        self.tunnel = tunnel
        """Its local sockets: ``tunnel.addresses`` in the order of the forwards."""
        self.tun = tun
        self._supervisor = supervisor
        self._renewal = renewal

    @property
    def edge(self) -> Tunnel:
        """Deprecated name of ``tunnel``."""
        return self.tunnel

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
        """The output of ``agent status``."""
        data = await report("agent", self.options.relay, self._supervisor, self.tunnel)
        data |= self._renewal.report()
        data["addresses"] = self._addresses()
        if self.tun is not None:
            data["interface"] = self.tun.name
            data["interface_mtu"] = self.tun.mtu
            data["interface_addresses"] = [str(address) for address in self.tun.plan.addresses]
        return data

    def _addresses(self) -> dict[str, list[str]]:
        """The address of each service for local programs."""
        found: dict[str, list[str]] = {}
        for spec, address in zip(self.options.forwards, self.tunnel.addresses, strict=False):
            found.setdefault(spec.service, []).append(f"{spec.protocol} {address}")
        if self.options.tun is not None:
            found |= addresses_of(self.options.tun.routes(self.options.all_services()))
        return found


@asynccontextmanager
async def running(options: AgentOptions, *, engine: ClientEngine | None = None) -> AsyncIterator[Agent]:
    """An agent that connects, stays connected, and ends with the block.

    Raises ``ConfigError`` and ``TunnelError`` when it cannot begin, ``TunnelError`` out of the block when its sockets,
    its interface or the engine fail later.
    """
    services = options.all_services()
    inner = inner_addresses(options)
    async with contextlib.AsyncExitStack() as stack:
        if engine is None:
            engine = await stack.enter_async_context(ClientEngine())
        tun: Tun | None = None
        if options.tun is None:
            try:
                tunnel = await engine.open_tunnel(lambda number: _open_forwards(number, options.forwards, inner))
            except TunnelError as error:
                raise TunnelError(f"{error}; name another address or port with --forward") from error
        else:
            maps = options.tun.routes(services)
            addresses = options.tun.addresses or inner
            into = [ip_network(item.address) for item in maps]
            tun = Tun(Plan(options.tun.name, addresses, into, pools=options.relay.pools))
            stack.callback(tun.close)
            tunnel = await engine.open_tunnel(_open_tun(tun.fd, maps, options.tun.default_service, addresses))
            if options.tun.hosts is not None:
                stack.enter_context(listed(options.tun.hosts, tun.name, addresses_of(maps)))
            for service, found in addresses_of(maps).items():
                _log.info(f"Service {service!r} has the addresses {' and '.join(found)}", interface=tun.name)
        stack.callback(tunnel.close)
        for spec, address in zip(options.forwards, tunnel.addresses, strict=False):
            _log.info(f"Forwarding {spec.protocol} {address} to service {spec.service!r}")
        renewal = Renewal(engine, options.relay, rotate_key=options.rotate_key)
        supervisor = Supervisor(
            engine,
            options.relay,
            role=Role.AGENT,
            services=services,
            tunnel=tunnel,
            ready=renewal.ready,
            on_limit=None if tun is None else follow_limit(tun, services),
        )
        agent = Agent(options, supervisor, renewal, tunnel, tun)
        tasks = [
            supervisor.run(),
            log_notices(tunnel),
            warn_before_end(options.relay),
            follow_files(options.relay, supervisor.renew),
            renewal.run(supervisor.renew, supervisor.state),
            follow_ports(supervisor, options.forwards, tunnel),
            tunnel.until_failed(),
            engine.until_failed(),
        ]
        if tun is not None:
            tasks.append(watch(tun, supervisor.relay_hosts))
        async with background(*tasks):
            yield agent


def addresses_of(maps: Sequence[TunMap]) -> dict[str, list[str]]:
    """The addresses of each service."""
    found: dict[str, list[str]] = {}
    for item in maps:
        found.setdefault(item.service.decode(), []).append(item.address)
    return found


async def follow_ports(supervisor: Supervisor, forwards: Sequence[ForwardSpec], tunnel: Tunnel) -> None:
    """Log why a local port refuses connections: when that begins, and seldom while it comes and goes."""
    loop = asyncio.get_running_loop()
    repeats = Repeats()
    known: tuple[list[str], str] = ([], "")

    def changed(state: State) -> bool:
        return (state.usable, state.last_error) != known

    while True:
        await supervisor.wait_until(changed)
        usable, why = known = (supervisor.state.usable, supervisor.state.last_error)
        for spec, address in zip(forwards, tunnel.addresses, strict=True):
            refuses = spec.service not in usable and why
            if refuses and repeats.due(spec, loop.time()) is not None:
                _log.warning(f"Port {spec.protocol} {address} of service {spec.service!r} refuses", reason=why)


def inner_addresses(options: AgentOptions) -> tuple[IPAddress, ...]:
    """The inner addresses that the relay leases to our key, so that it need not translate.

    Raises ``CertificateError``.
    """
    if options.relay.identity_file is None:
        first, second = ANONYMOUS_INNER
    else:
        leaf = load_certificates(options.relay.identity_file)[0].public_bytes(Encoding.DER)
        key = identity_of(leaf).key_hash
        first, second = inner_address(key, *map(str, options.relay.pools))
    return IPv4Address(first), IPv6Address(second)


def follow_limit(tun: Tun, services: Sequence[str], *, bare: bool = False) -> Callable[[int], Any]:
    """Keeps a TUN's MTU at what one DATAGRAM of the connection carries."""
    wrapper = 0 if bare else WRAPPER + max((len(service.encode()) for service in services), default=0)

    async def follow(limit: int) -> None:
        before = tun.mtu
        await asyncio.to_thread(tun.set_mtu, limit - wrapper)
        if tun.mtu != before:
            _log.info(f"Interface {tun.name} carries packets of up to {tun.mtu} bytes")

    return follow


def _open_forwards(number: int, forwards: Sequence[ForwardSpec], inner: Sequence[IPAddress]) -> Command:
    made = [
        Forward(
            protocol=spec.protocol,
            bind=(spec.host, spec.port),
            service=spec.service.encode(),
            destination=(str(service_addresses(spec.service)[0]), spec.port or UNPRIVILEGED_PORT),
        )
        for spec in forwards
    ]
    v4, v6 = (str(next(address for address in inner if address.version == version)) for version in (4, 6))
    return Command.OpenForwards(number, made, v4, v6)


def _open_tun(
    fd: int, maps: list[TunMap], default_service: str | None, inner: Sequence[IPAddress]
) -> Callable[[int], Command]:
    default = None if default_service is None else default_service.encode()
    source = next((str(address) for address in inner if address.version == 4), None)
    return lambda number: Command.OpenTun(number, fd, maps, default, source=source)
