"""The nouns shared by every room: roles, addresses, identities, registrations."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NewType

ConnectionId = NewType("ConnectionId", int)
"""Names one connection of the engine; never used again after it closed."""


class Role(enum.Enum):
    """The role of a peer for a service."""

    AGENT = "agent"
    CONNECTOR = "connector"


@dataclass(frozen=True, slots=True)
class Address:
    """A UDP address; an IPv4-mapped IPv6 address is held as IPv4."""

    host: IPv4Address | IPv6Address
    port: int

    @classmethod
    def of(cls, pair: tuple[str, int]) -> Address:
        """The address of an engine ``(host, port)`` pair. Raises ``ValueError``."""
        host = ip_address(pair[0])
        if isinstance(host, IPv6Address) and host.ipv4_mapped is not None:
            host = host.ipv4_mapped
        return cls(host, pair[1])

    @property
    def source(self) -> str:
        """The network that counts as one source, such as one subscriber has: the IPv4 address, or the IPv6 /56."""
        # Not by ip_network, which takes ten times as long: each line and connection needs this.
        if isinstance(self.host, IPv4Address):
            return f"{self.host!s}/32"
        return f"{IPv6Address(int(self.host) >> 72 << 72)!s}/56"

    def __str__(self) -> str:
        return f"[{self.host!s}]:{self.port}" if self.host.version == 6 else f"{self.host!s}:{self.port}"


@dataclass(frozen=True, slots=True)
class Identity:
    """The proven identity of a peer, from the leaf certificate of its handshake alone."""

    fingerprint: str
    """SHA-256 of the certificate, lower-case hex."""
    key_hash: bytes
    """SHA-256 of the SubjectPublicKeyInfo, 32 bytes: the same after a renewal with the same key."""
    subject: str
    """The subject as RFC 4514 text."""
    dns_names: tuple[str, ...]
    """DNS names of the SAN extension, lower-cased, one trailing dot removed."""
    uris: tuple[str, ...]
    """URI names of the SAN extension, as written (SPIFFE ids among them)."""
    not_before: datetime
    not_after: datetime
    """Validity, aware UTC."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An admitted connection."""

    conn: ConnectionId
    address: Address
    """The present source of its packets."""
    identity: Identity | None
    """None for an anonymous peer."""


@dataclass(frozen=True, slots=True)
class Registration:
    """A peer's request to be agent of, or connector for, a service."""

    peer: Peer
    role: Role
    service: str
