"""Identities, peers and registrations that no certificate has to be made for."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address

from intermediate_server.types import Address, ConnectionId, Identity, Peer, Registration, Role

URI = "spiffe://example.org/agent"


def identity(*dns_names: str, key: str = "agent", serial: int = 1, uris: tuple[str, ...] = (URI,)) -> Identity:
    """The certificate number ``serial`` of the holder of ``key``; each begins a second after the one before."""
    return Identity(
        fingerprint=hashlib.sha256(f"{key}/{serial}".encode()).hexdigest(),
        key_hash=hashlib.sha256(key.encode()).digest(),
        subject=f"CN={key}",
        dns_names=dns_names,
        uris=uris,
        not_before=datetime(2026, 1, 1, second=serial, tzinfo=UTC),
        not_after=datetime(2027, 1, 1, tzinfo=UTC),
    )


def peer(conn: int = 1, key: str | None = None, *, serial: int = 1, host: str = "198.51.100.1") -> Peer:
    """The holder of ``key`` at a connection, or somebody anonymous."""
    who = None if key is None else identity(key=key, serial=serial)
    return Peer(ConnectionId(conn), Address(ip_address(host), 40_000), who)


def wanted(*dns_names: str, role: Role = Role.AGENT, service: str = "web") -> Registration:
    """A question about the holder of a certificate for these names."""
    return Registration(replace(peer(), identity=identity(*dns_names)), role, service)
