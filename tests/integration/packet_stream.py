"""A steady stream of numbered datagrams through a local port to an echo, and the numbers that never came back."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from typing_extensions import override

from intermediate_server.testing.programs import PATIENCE

RATE = 1_000
"""Datagrams a second."""
UNDER_WAY = 32
"""Datagrams that may be under way at once: on a busy machine the stream is slower, and no socket buffer overflows."""
SIZES = (64, 1_100)
PATIENT = ("--keep-alive", "15", "--idle-timeout", "60")
"""Flags of agents and connectors: a starved relay is not silent, which would be another reason for a new connection."""


class PacketStream(asyncio.DatagramProtocol):
    """Sends until it is stopped, and takes what comes back."""

    def __init__(self) -> None:
        self.sent = 0
        self.back: set[int] = set()
        self.repeated = 0
        self.longest_gap = 0.0
        """The longest time in seconds between two datagrams that came back."""
        self.last = time.monotonic()
        """When the last one came back, by the monotonic clock."""
        self.refused = 0
        """How often the local port has refused."""

    @property
    def missing(self) -> list[int]:
        """The numbers that have not come back."""
        return [number for number in range(self.sent) if number not in self.back]

    @override
    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        (number,) = struct.unpack_from("!Q", data)
        self.repeated += number in self.back
        self.back.add(number)
        now = time.monotonic()
        self.longest_gap, self.last = max(self.longest_gap, now - self.last), now

    @override
    def error_received(self, exc: Exception) -> None:
        self.refused += 1

    async def run(self, transport: asyncio.DatagramTransport) -> None:
        """Send at the rate until cancelled."""
        began, first = time.monotonic(), self.sent
        while True:
            due = first + int((time.monotonic() - began) * RATE)
            while self.sent < due and self.sent - len(self.back) < UNDER_WAY:
                transport.sendto(struct.pack("!Q", self.sent).ljust(SIZES[self.sent % len(SIZES)], b"."))
                self.sent += 1
            await asyncio.sleep(0.001)

    async def wait_sent(self, more: int) -> None:
        """Wait until that many more have been sent."""
        until = self.sent + more
        async with asyncio.timeout(PATIENCE):
            while self.sent < until:  # noqa: ASYNC110  the stream is the clock
                await asyncio.sleep(0.01)


@asynccontextmanager
async def packet_stream(address: str, *, complete: bool = True) -> AsyncIterator[PacketStream]:
    """A stream to a local port that ends with the block, where ``complete`` after the last ones have come back."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    transport, stream = await loop.create_datagram_endpoint(PacketStream, remote_addr=(host, int(port)))
    running = asyncio.create_task(stream.run(transport))
    try:
        yield stream
    finally:
        running.cancel()
        end = loop.time() + PATIENCE / 3
        while complete and stream.missing and loop.time() < end:  # noqa: ASYNC110  the echo decides when
            await asyncio.sleep(0.01)
        transport.close()
