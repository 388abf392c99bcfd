"""The virtual addresses of a service: where its packets go inside the tunnel.

A connector with several services gets bare IP packets and has nothing but their destination to tell the services
apart. Both ends derive the same addresses from the service's name, so nothing has to be configured or exchanged.
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

NETWORK_V4 = IPv4Network("198.18.0.0/15")
"""Reserved for tests between networks (RFC 2544), so no application is addressed by it."""
NETWORK_V6 = IPv6Network("fd64:7a74:6e61:5::/64")


def virtual_addresses(service: str) -> tuple[IPv4Address, IPv6Address]:
    """The IPv4 and IPv6 address of a service; the same everywhere.

    Two names share an IPv4 address with a chance of 1 in 131,070; a connector refuses to serve both.
    """
    digest = hashlib.sha256(service.encode()).digest()
    # Neither the address of the network nor its broadcast address.
    host = int.from_bytes(digest[:8]) % (NETWORK_V4.num_addresses - 2) + 1
    interface = int.from_bytes(digest[8:16]) or 1
    return NETWORK_V4[host], NETWORK_V6[interface]
