"""A client on a UDP socket, packet by packet, for what no library would send."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import HandshakeCompleted, QuicEvent

from tests.integration.conftest import PATIENCE, Server


class Client:
    """A QUIC client that shows its packets: the test sends and receives them."""

    def __init__(self, sock: socket.socket, server: Server, *, token: bytes = b"") -> None:
        self.sock = sock
        self.events: list[QuicEvent] = []
        self._loop = asyncio.get_running_loop()
        configuration = QuicConfiguration(
            alpn_protocols=["ztna-v1"],
            server_name="ztna-server",
            max_datagram_frame_size=65_536,
            verify_mode=ssl.CERT_NONE,
            token=token,
        )
        self.quic = QuicConnection(configuration=configuration)
        self.quic.connect(server.address, now=self._loop.time())

    def packets(self) -> list[bytes]:
        """What the client wants to send now."""
        return [data for data, _ in self.quic.datagrams_to_send(now=self._loop.time())]

    def send(self, packets: list[bytes] | None = None) -> None:
        for packet in self.packets() if packets is None else packets:
            self.sock.send(packet)

    async def receive(self) -> None:
        """Take one packet, or let the client's timer run when none comes in time."""
        timer = self.quic.get_timer()
        wait = PATIENCE if timer is None else max(0.0, timer - self._loop.time())
        try:
            data = await asyncio.wait_for(self._loop.sock_recv(self.sock, 65_536), wait)
        except TimeoutError:
            self.quic.handle_timer(now=self._loop.time())
        else:
            self.quic.receive_datagram(data, self.sock.getpeername(), now=self._loop.time())
        while (event := self.quic.next_event()) is not None:
            self.events.append(event)

    async def until(self, done: Callable[[], bool]) -> None:
        """Exchange packets until ``done``; what is to be sent then is not."""
        async with asyncio.timeout(PATIENCE):
            while not done():
                self.send()
                await self.receive()

    def saw(self, kind: type[QuicEvent]) -> bool:
        return any(isinstance(event, kind) for event in self.events)

    async def connected(self) -> None:
        await self.until(lambda: self.saw(HandshakeCompleted))
        self.send()

    async def retried(self) -> None:
        """Send the first packet and take the Retry that answers it, without using its token yet."""
        await self.until(lambda: bool(self.token))

    @property
    def token(self) -> bytes:
        return self.quic._peer_token


@asynccontextmanager
async def udp(server: Server, source: str = "127.0.0.1") -> AsyncIterator[socket.socket]:
    """A socket that talks to the server from an address of this host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        sock.connect(server.address)
        sock.setblocking(False)
        yield sock
