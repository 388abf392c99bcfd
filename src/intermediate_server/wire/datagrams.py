"""ztna-v1 in QUIC DATAGRAMs (RFC 9221): the codec of docs/protocol.md section 2.

Flow::

    client                                   server
      | ------ QUIC handshake, ALPN ztna-v1 ---> |
      | <- OBSERVED (01 or 02) ----------------- |  again on each address change
      | -- REGISTER (10 agent, 11 connector) --> |  sent up to three times until answered
      | <- ACK (12) or NACK (13) --------------- |  a repeated REGISTER is answered again
      | -- ROUTED (2f): service id + packet ---> |  agents only; the wrapper ends here
      | <- IP packet (4x, 6x) -----------------> |  bare, both ways

Layout, integers big endian, ``L`` one byte, ``id`` the service id: L bytes of UTF-8, 0 to 255::

    OBSERVED v4   01 | IPv4 (4)  | port (2)            7 bytes, server to client
    OBSERVED v6   02 | IPv6 (16) | port (2)           19 bytes, server to client
    REGISTER      10 or 11 | L | id                    client to server, trailing bytes ignored
    ACK           12 | 00 | L | id                     server to client
    NACK          13 | status | L | id                 server to client
    ROUTED        2f | L | id | IP packet              agent to server
    anything else is a bare IP packet

A REGISTER under 2 bytes, a ROUTED under 3 bytes, or an L beyond the end is ignored; the connection stays.
A REGISTER whose id is not UTF-8 is answered with ``13 01 00``. Clients take an OBSERVED longer than its
layout, need 3 + L bytes of an ACK or NACK and ignore the status of an ACK. An IPv6 address never travels
under 01: clients would read its first four bytes as IPv4.

The engine strips ROUTED itself and sends only REGISTER up, so the server side of this module is
:func:`decode_control`; :func:`decode_server` is the client side.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from intermediate_server.types import Address, Role

OBSERVED_V4 = 0x01
OBSERVED_V6 = 0x02
REGISTER_AGENT = 0x10
REGISTER_CONNECTOR = 0x11
ACK = 0x12
NACK = 0x13
ROUTED = 0x2F

MAX_SERVICE_BYTES = 255
"""Longest service id in bytes of UTF-8: its length is one byte on the wire (docs/protocol.md section 2)."""

_V4 = struct.Struct("!B4sH")
_V6 = struct.Struct("!B16sH")
_ROLES = {REGISTER_AGENT: Role.AGENT, REGISTER_CONNECTOR: Role.CONNECTOR}
_TYPES = {role: first for first, role in _ROLES.items()}


class NackStatus(enum.IntEnum):
    """The reason of a denial (docs/protocol.md section 2.2); clients must take unknown values too."""

    NOT_UTF8 = 0x01
    """The id is not UTF-8; the answer does not echo it, so clients ignore the answer and ask again."""
    NOT_AUTHORISED = 0x02
    """The policy denied it; clients give up until they reconnect."""


@dataclass(frozen=True, slots=True)
class ObservedAddress:
    """The address the server sees the client at; 01 for IPv4, 02 for IPv6 (docs/protocol.md section 2.1)."""

    address: Address


@dataclass(frozen=True, slots=True)
class Register:
    """A client's request to be agent of, or connector for, a service (docs/protocol.md section 2.2)."""

    role: Role
    service: str
    """At most 255 bytes of UTF-8; the empty id is a service like any other."""


@dataclass(frozen=True, slots=True)
class NotUtf8Registration:
    """A registration whose service id cannot be read; the answer is ``Nack(NackStatus.NOT_UTF8)``."""

    role: Role


@dataclass(frozen=True, slots=True)
class Ack:
    """The registration is live: packets for the service are routed from now on (docs/protocol.md section 2.2)."""

    service: str


@dataclass(frozen=True, slots=True)
class Nack:
    """The registration was denied (docs/protocol.md section 2.2)."""

    status: int
    """0 to 255, see :class:`NackStatus`."""
    service: str = ""


@dataclass(frozen=True, slots=True)
class ServiceRouted:
    """An agent's IP packet with its service (docs/protocol.md section 2.3)."""

    service: str
    packet: bytes


Message = ObservedAddress | Register | Ack | Nack | ServiceRouted
"""The messages that :func:`encode` writes."""


def encode(message: Message) -> bytes:
    """The datagram of a message.

    Raises ``ValueError`` for a service id over 255 bytes or not encodable as UTF-8, a port outside 0 to 65535
    and a status outside 0 to 255: no decoded message has any of them.
    """
    match message:
        case ObservedAddress(address):
            return _encode_observed(address)
        case Register(role, service):
            return bytes((_TYPES[role],)) + _sized(service)
        case Ack(service):
            return bytes((ACK, 0)) + _sized(service)
        case Nack(status, service):
            return bytes((NACK, status)) + _sized(service)
        case ServiceRouted(service, packet):
            return bytes((ROUTED,)) + _sized(service) + packet


def decode_control(data: bytes) -> Register | NotUtf8Registration | None:
    """Read a registration as the server does; None is to be ignored. Never raises."""
    if len(data) < 2:
        return None
    role = _ROLES.get(data[0])
    end = 2 + data[1]
    if role is None or len(data) < end:
        return None
    service = _text(data[2:end])
    return NotUtf8Registration(role) if service is None else Register(role, service)


def decode_server(data: bytes) -> ObservedAddress | Ack | Nack | bytes:
    """Read a datagram from the server as a client does. Never raises.

    Data that is no well-formed message is returned as a bare IP packet. That includes a damaged message: its first byte
    is no IP version, so no reader of IP takes it.
    """
    first = data[0] if data else None
    if first == OBSERVED_V4 and len(data) >= _V4.size:
        _, host, port = _V4.unpack_from(data)
        return ObservedAddress(Address(IPv4Address(host), port))
    if first == OBSERVED_V6 and len(data) >= _V6.size:
        _, host, port = _V6.unpack_from(data)
        v6 = IPv6Address(host)
        return ObservedAddress(Address(v6.ipv4_mapped or v6, port))
    if first in (ACK, NACK) and len(data) >= 3 and len(data) >= 3 + data[2]:
        service = _text(data[3 : 3 + data[2]])
        if service is not None:
            return Ack(service) if first == ACK else Nack(data[1], service)
    return data


def decode_service_routed(data: bytes) -> ServiceRouted | None:
    """Read an agent's service-routed packet; None is to be ignored. Never raises.

    The server does this in the engine, by bytes. Here an id that is not UTF-8 is ignored as well: no such
    service can be registered.
    """
    if len(data) < 3 or data[0] != ROUTED or len(data) < 2 + data[1]:
        return None
    service = _text(data[2 : 2 + data[1]])
    return None if service is None else ServiceRouted(service, data[2 + data[1] :])


def _encode_observed(address: Address) -> bytes:
    if not 0 <= address.port <= 0xFFFF:
        raise ValueError(f"port {address.port} is not in 0..65535")
    host = address.host
    if isinstance(host, IPv6Address):
        if host.ipv4_mapped is None:
            return _V6.pack(OBSERVED_V6, host.packed, address.port)
        host = host.ipv4_mapped
    return _V4.pack(OBSERVED_V4, host.packed, address.port)


def _sized(service: str) -> bytes:
    raw = service.encode()
    if len(raw) > MAX_SERVICE_BYTES:
        raise ValueError(f"service id of {len(raw)} bytes; at most {MAX_SERVICE_BYTES} fit")
    return bytes((len(raw),)) + raw


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None
