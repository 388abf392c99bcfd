"""The addresses of a service inside the tunnel.

A connector with several services gets bare IP packets, and their destination alone tells the services apart. Both ends
and the relay derive the same addresses from the service's name, so these need no configuration and no exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from intermediate_server import engine
from intermediate_server.client.specs import check_service
from intermediate_server.errors import ConfigError


def service_addresses(service: str) -> tuple[IPv4Address, IPv6Address]:
    """The IPv4 and IPv6 address of a service, in 198.18.0.0/15 and fd64:7a74:6e61:5::/64; the same everywhere.

    Two names share an IPv4 address with a chance of 1 in 131,070: see :func:`check_distinct`.
    """
    v4, v6 = engine.service_addresses(service.encode())
    return IPv4Address(v4), IPv6Address(v6)


def check_distinct(services: Sequence[str], *, end: str) -> None:
    """Raises ``ConfigError`` when two services cannot be told apart, or one is no service.

    ``end`` is ``agent`` or ``connector``.
    """
    named: dict[IPv4Address, str] = {}
    for service in map(check_service, services):
        other = named.setdefault(service_addresses(service)[0], service)
        if other != service:
            raise ConfigError(f"{other!r} and {service!r} have the same service address; use one {end} for each")
