"""An ICMP echo through a relay (RFC 792)."""

from __future__ import annotations

import asyncio
import struct
from ipaddress import IPv4Address

from intermediate_server.client import Connection

PATIENCE = 5.0
"""Seconds to wait for the answer."""

_HEADER = struct.Struct("!BBHHHBBH4s4s")
_ECHO, _REPLY, _ICMP = 8, 0, 1


async def ping(connection: Connection, service: str, source: IPv4Address, target: IPv4Address) -> float:
    """Seconds until the connector of ``service`` answers. Raises ``TimeoutError`` and ``ConnectionClosed``.

    The connection must be registered as an agent of the service, and used for nothing else meanwhile.
    """
    loop = asyncio.get_running_loop()
    payload = b"intermediate-server"
    begun = loop.time()
    connection.send(_echo(source, target, payload), service=service)
    async with asyncio.timeout(PATIENCE):
        while True:
            packet = await connection.receive()
            if len(packet) >= 28 and packet[9] == _ICMP and packet[20] == _REPLY and packet.endswith(payload):
                return loop.time() - begun


def _echo(source: IPv4Address, target: IPv4Address, payload: bytes) -> bytes:
    body = struct.pack("!BBHHH", _ECHO, 0, 0, 1, 1) + payload
    body = body[:2] + _checksum(body) + body[4:]
    header = _HEADER.pack(0x45, 0, 20 + len(body), 1, 0, 64, _ICMP, 0, source.packed, target.packed)
    return header[:10] + _checksum(header) + header[12:] + body


def _checksum(data: bytes) -> bytes:
    """The Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return struct.pack("!H", ~total & 0xFFFF)
