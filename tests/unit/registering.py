"""Peers and registrations for tests of policies."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address

from intermediate_server.types import Address, ConnectionId, Identity, Peer, Registration, Role


def identity(*dns_names: str) -> Identity:
    return Identity(
        fingerprint="00" * 32,
        key_hash=bytes(32),
        subject="CN=agent.web.ztna",
        dns_names=dns_names,
        uris=("spiffe://example.org/agent",),
        not_before=datetime(2026, 1, 1, tzinfo=UTC),
        not_after=datetime(2027, 1, 1, tzinfo=UTC),
    )


def peer(*dns_names: str, conn: int = 1, anonymous: bool = False) -> Peer:
    address = Address(ip_address("198.51.100.1"), 40_000)
    return Peer(ConnectionId(conn), address, None if anonymous else identity(*dns_names))


def wanted(*dns_names: str, role: Role = Role.AGENT, service: str = "web") -> Registration:
    return Registration(peer(*dns_names), role, service)
