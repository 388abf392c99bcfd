"""A probe of a service: an echo request and the SYN of a connection, sent as by any agent."""

from __future__ import annotations

import asyncio
import secrets
import struct
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address

from intermediate_server.client.connection import Connection
from intermediate_server.client.service_address import service_addresses

PATIENCE = 4.0
"""Seconds to wait for answers."""
AGAIN = 0.5
"""Seconds after which an unanswered packet is sent again, since DATAGRAMs get lost."""

_ICMP, _TCP = 1, 6
_SYN, _RST = 0x02, 0x04
_HOST_UNREACHABLE, _PROHIBITED = 1, 13
"""Codes of ICMP "unreachable" (RFC 1812 section 5.2.7.1)."""
_PORT = 1
"""Destination port of the SYN; a connector of backends takes any."""


@dataclass(slots=True)
class Behind:
    """The result of a probe."""

    connector: bool | None = None
    """Whether its connector answers; None without any answer."""
    application: str = ""
    """Outcome of the connection: ``taken``, ``refused``, ``unreachable`` or ``no tcp``; empty without an answer."""

    @property
    def decided(self) -> bool:
        """Whether further answers could change nothing."""
        return self.connector is False or self.application != ""

    @property
    def ok(self) -> bool:
        """Whether a client would probably be served."""
        return self.connector is True and self.application in ("taken", "no tcp")

    def __str__(self) -> str:
        if self.connector is None:
            return f"nobody has answered within {PATIENCE:g} s"
        if not self.connector:
            return "it has no connector at the relay"
        return {
            "taken": "its connector answers and its application takes connections",
            "no tcp": "its connector answers; that its application does cannot be told, since it does not speak TCP",
            "refused": "its connector answers, but a connection was refused behind it: is the application running?"
            " (A connector with --tun refuses where nothing listens on port 1.)",
            "unreachable": "its connector answers, but cannot reach the application",
        }.get(self.application, f"its connector answers, but the application has not within {PATIENCE:g} s")


async def look_behind(connection: Connection, service: str, source: IPv4Address) -> Behind:
    """Probe a service that the connection is registered for. Raises ``ConnectionClosed``."""
    packets = _Packets(source, service_addresses(service)[0])
    found = Behind()
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while not found.decided:
                for packet in packets.questions():
                    connection.send(packet, service=service)
                with suppress(TimeoutError):
                    async with asyncio.timeout(AGAIN):
                        while not found.decided:
                            packets.read(await connection.receive(), found)
    if found.application == "taken":
        connection.send(packets.reset(), service=service)
    return found


class _Packets:
    """The questions to one service, and the result of their answers."""

    def __init__(self, source: IPv4Address, destination: IPv4Address) -> None:
        self._source, self._destination = source.packed, destination.packed
        self._token = secrets.token_bytes(4)
        self._port = secrets.randbelow(16_384) + 49_152
        self._sequence = secrets.randbits(31)

    def questions(self) -> list[bytes]:
        """The echo request and the SYN; the same each time."""
        echo = _with_checksum(b"\x08\0\0\0" + self._token, at=2)
        return [self._ip(_ICMP, echo), self._ip(_TCP, self._segment(self._sequence, _SYN))]

    def reset(self) -> bytes:
        """Takes the connection back."""
        return self._ip(_TCP, self._segment(self._sequence + 1, _RST))

    def read(self, packet: bytes, found: Behind) -> None:
        """Take a packet into the result, if it is an answer."""
        header = _read(packet)
        if header is None or header.destination != self._source:
            return
        payload, far = header.payload, header.source == self._destination
        if header.protocol == _TCP:
            if far and len(payload) >= 14 and payload[:4] == struct.pack("!HH", _PORT, self._port):
                found.connector = True
                if payload[13] & (_RST | _SYN):
                    found.application = "refused" if payload[13] & _RST else "taken"
        elif header.protocol == _ICMP and payload[0] == 0:
            if far and payload[4:8] == self._token:
                found.connector = True
        elif header.protocol == _ICMP and payload[0] == 3:
            self._read_error(code=payload[1], far=far, about=_read(payload[8:]), found=found)

    def _read_error(self, *, code: int, far: bool, about: _Header | None, found: Behind) -> None:
        """Take an ICMP "unreachable" into the result, if it is about a packet of ours."""
        if about is None or about.destination != self._destination:
            return
        if about.payload[4:8] != self._token and about.payload[:4] != struct.pack("!HH", self._port, _PORT):
            return
        if not far:
            # The relay's own answer; its other codes are not about connectors.
            if code == _HOST_UNREACHABLE:
                found.connector = False
        else:
            found.connector = True
            if about.protocol == _TCP:
                found.application = "no tcp" if code == _PROHIBITED else "unreachable"

    def _segment(self, sequence: int, flags: int) -> bytes:
        head = struct.pack("!HHIIBBHHH", self._port, _PORT, sequence, 0, 5 << 4, flags, 65_535, 0, 0)
        pseudo = self._source + self._destination + struct.pack("!HH", _TCP, len(head))
        return _with_checksum(head, at=16, pseudo=pseudo)

    def _ip(self, protocol: int, payload: bytes) -> bytes:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0)
        return _with_checksum(head + self._source + self._destination, at=10) + payload


@dataclass(frozen=True, slots=True)
class _Header:
    """The parts of an IPv4 packet that are read."""

    protocol: int
    source: bytes
    destination: bytes
    payload: bytes
    """At least 8 bytes."""


def _read(packet: bytes) -> _Header | None:
    if len(packet) < 28 or packet[0] >> 4 != 4:
        return None
    payload = packet[4 * (packet[0] & 0x0F) :]
    return _Header(packet[9], packet[12:16], packet[16:20], payload) if len(payload) >= 8 else None


def _with_checksum(data: bytes, *, at: int, pseudo: bytes = b"") -> bytes:
    """``data`` with its Internet checksum (RFC 1071) in the two bytes at ``at``, which are zero."""
    summed = pseudo + data
    total = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return data[:at] + struct.pack("!H", ~total & 0xFFFF) + data[at + 2 :]
