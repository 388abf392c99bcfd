"""The packets that agents and connectors exchange, written and read byte by byte."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

Address = tuple[str, int]


def udp_packet(source: Address, destination: Address, payload: bytes) -> bytes:
    """An inner IPv4 or IPv6 packet with UDP, its checksums set."""
    ends = ipaddress.ip_address(source[0]).packed + ipaddress.ip_address(destination[0]).packed
    length = 8 + len(payload)
    head = struct.pack("!HHHH", source[1], destination[1], length, 0)
    checksum = ones_complement(pseudo_header(ends, 17, length) + head + payload) or 0xFFFF
    return ip_header(ends, 17, length) + head[:6] + struct.pack("!H", checksum) + payload


def sized_udp_packet(source: Address, destination: Address, size: int) -> bytes:
    """An inner UDP packet of exactly ``size`` bytes."""
    empty = len(udp_packet(source, destination, b""))
    return udp_packet(source, destination, bytes(index & 0xFF for index in range(size - empty)))


def ip_header(ends: bytes, protocol: int, length: int) -> bytes:
    """The header before ``length`` bytes; ``ends`` is source and destination."""
    if len(ends) == 32:
        return struct.pack("!IHBB", 6 << 28, length, protocol, 64) + ends
    start = struct.pack("!BBHHHBB", 0x45, 0, 20 + length, 0, 0x4000, 64, protocol)
    return start + struct.pack("!H", ones_complement(start + b"\0\0" + ends)) + ends


def pseudo_header(ends: bytes, protocol: int, length: int) -> bytes:
    """What a checksum takes in of the header; that of IPv6 has zeros more, which add nothing."""
    return ends + struct.pack("!HH", protocol, length)


def icmp_echo(source: str, destination: str, identifier: int, payload: bytes) -> bytes:
    """An inner ICMP echo request."""
    message = struct.pack("!BBHHH", 8, 0, 0, identifier, 1) + payload
    message = message[:2] + struct.pack("!H", ones_complement(message)) + message[4:]
    ends = ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address(destination).packed
    return ip_header(ends, 1, len(message)) + message


@dataclass(frozen=True, slots=True)
class InnerUdp:
    """An inner UDP packet, read and checked."""

    source: Address
    destination: Address
    payload: bytes


def read_udp(packet: bytes) -> InnerUdp:
    """The parts of an inner UDP packet, which must be whole and have right checksums."""
    ends, (source, destination), body = read_ip(packet, 17)
    assert ones_complement(pseudo_header(ends, 17, len(body)) + body) == 0, f"UDP checksum: {packet.hex()}"
    ports = struct.unpack_from("!HH", body)
    return InnerUdp(source=(source, ports[0]), destination=(destination, ports[1]), payload=body[8:])


@dataclass(frozen=True, slots=True)
class InnerIcmp:
    """An inner ICMP message, read and checked; ``rest`` is the second word, ``body`` what follows."""

    source: str
    destination: str
    kind: int
    code: int
    rest: int
    body: bytes


def read_icmp(packet: bytes) -> InnerIcmp:
    """The parts of an inner ICMP or ICMPv6 packet, which must be whole and have right checksums."""
    protocol = 1 if packet[0] >> 4 == 4 else 58
    ends, (source, destination), body = read_ip(packet, protocol)
    checked = body if protocol == 1 else pseudo_header(ends, protocol, len(body)) + body
    assert ones_complement(checked) == 0, f"ICMP checksum: {packet.hex()}"
    kind, code, _, rest = struct.unpack_from("!BBHI", body)
    return InnerIcmp(source=source, destination=destination, kind=kind, code=code, rest=rest, body=body[8:])


def read_ip(packet: bytes, protocol: int) -> tuple[bytes, tuple[str, str], bytes]:
    """Source and destination, as bytes and as texts, and what follows a header that must be plain and right."""
    if packet[0] >> 4 == 4:
        size, length, at = 20, int.from_bytes(packet[2:4], "big"), 9
        assert packet[0] == 0x45, packet.hex()
        assert ones_complement(packet[:20]) == 0, f"header checksum: {packet.hex()}"
    else:
        size, length, at = 40, 40 + int.from_bytes(packet[4:6], "big"), 6
        assert packet[:4] == b"\x60\0\0\0", packet.hex()
    assert packet[at] == protocol, packet.hex()
    assert length == len(packet), packet.hex()
    ends = packet[12:20] if size == 20 else packet[8:40]
    half = len(ends) // 2
    texts = str(ipaddress.ip_address(ends[:half])), str(ipaddress.ip_address(ends[half:]))
    return ends, texts, packet[size:]


def ones_complement(data: bytes) -> int:
    """The internet checksum (RFC 1071); 0 over data that holds a right one."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
