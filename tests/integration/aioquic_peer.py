"""A ztna-v1 client on aioquic: a second, unrelated QUIC stack to test the server against."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import (
    ConnectionTerminated,
    DatagramFrameReceived,
    HandshakeCompleted,
    ProtocolNegotiated,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)

from tests.integration.packets import Address
from tests.integration.peers import PATIENCE, Ended, Inbox, WirePeer
from tests.integration.signals import FrameReader


class _Protocol(QuicConnectionProtocol):
    """Files what comes in; the protocol object lives as long as the socket."""

    def __init__(self, quic: QuicConnection, first: Sequence[bytes] = (), *, reads: bool = True) -> None:
        super().__init__(quic)
        if not reads:
            quic._write_stream_limits = lambda *_, **__: None  # type: ignore[method-assign]
        self.quic = quic
        self.first = first
        self.inbox = Inbox()
        self.frames: dict[int, FrameReader] = {}
        self.alpn: str | None = None
        self.gone: asyncio.Future[str] | None = None
        self.terminated: ConnectionTerminated | None = None

    @property
    def transport(self) -> asyncio.DatagramTransport:
        """The socket that it sends by: the one it was given last."""
        return cast("asyncio.DatagramTransport", self._transport)

    def quic_event_received(self, event: QuicEvent) -> None:
        match event:
            case DatagramFrameReceived(data=data):
                self.inbox.put(data)
            case StreamDataReceived(data=data, stream_id=stream):
                reader = self.frames.setdefault(stream, FrameReader())
                for payload in reader.feed(data):
                    self.inbox.signals.put_nowait((stream, payload))
            case StreamReset(error_code=code, stream_id=stream):
                self.inbox.stream_ends.put_nowait(("reset", stream, code))
            case StopSendingReceived(error_code=code, stream_id=stream):
                self.inbox.stream_ends.put_nowait(("stop", stream, code))
            case HandshakeCompleted():
                # Nothing of the last flight has been sent yet: these go with it.
                for data in self.first:
                    self.quic.send_datagram_frame(data)
            case ProtocolNegotiated(alpn_protocol=alpn):
                self.alpn = alpn
            case ConnectionTerminated():
                self.terminated = event
                if self.gone is not None and not self.gone.done():
                    self.gone.set_result(f"code {event.error_code}, {event.reason_phrase!r}")


class AioquicPeer(WirePeer):
    """One connection with a socket of its own."""

    def __init__(self, protocol: _Protocol) -> None:
        super().__init__()
        self.inbox = protocol.inbox
        protocol.gone = self._gone
        self._protocol = protocol

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        server: Address,
        *,
        ca_file: Path | str | None = None,
        certificate: tuple[Path | str, Path | str] | None = None,
        server_name: str | None = "ztna-server",
        alpn: str = "ztna-v1",
        first: Sequence[bytes] = (),
        reads: bool = True,
    ) -> AsyncIterator[AioquicPeer]:
        """Connect, with the handshake done when the block is entered; closes at its end.

        Without ``reads`` the windows of its streams stay as they are, which is 1 KiB for each.

        ``first`` are DATAGRAMs that go beside the last flight of the handshake. Without ``ca_file`` any server
        certificate is taken. Raises ``ConnectionError`` when the handshake fails.
        """
        configuration = QuicConfiguration(
            is_client=True,
            alpn_protocols=[alpn],
            server_name=server_name,
            max_datagram_frame_size=65_536,
            idle_timeout=30.0,
            max_stream_data=1_048_576 if reads else 1_024,
            verify_mode=ssl.CERT_NONE if ca_file is None else ssl.CERT_REQUIRED,
        )
        if ca_file is not None:
            configuration.load_verify_locations(cafile=str(ca_file))
        if certificate is not None:
            configuration.load_cert_chain(Path(certificate[0]), Path(certificate[1]))
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_datagram_endpoint(
            lambda: _Protocol(QuicConnection(configuration=configuration), first, reads=reads),
            local_addr=("::1" if ":" in server[0] else "127.0.0.1", 0),
        )
        try:
            # A path is known by its whole socket address, which for IPv6 has four parts.
            protocol.connect((*server, 0, 0) if ":" in server[0] else server)
            async with asyncio.timeout(PATIENCE):
                await protocol.wait_connected()
            yield cls(protocol)
        finally:
            protocol.close()
            async with asyncio.timeout(PATIENCE):
                await protocol.wait_closed()
            protocol.transport.close()

    @property
    def local(self) -> Address:
        """The address of the socket."""
        return cast("Address", self._protocol.transport.get_extra_info("sockname")[:2])

    async def port(self) -> int:
        return self.local[1]

    async def rebind(self) -> Address:
        old = self._protocol.transport
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self._protocol, local_addr=(self.local[0], 0))
        old.close()
        await self.ping()
        return self.local

    async def largest(self) -> int:
        """What is left of its packets of 1200 bytes, without a few for what else is in one."""
        return 1_120

    @property
    def alpn(self) -> str | None:
        """The protocol the server chose."""
        return self._protocol.alpn

    @property
    def parameters(self) -> dict[str, Any]:
        """Transport parameters of the server that decide how much may be sent."""
        quic = self._protocol.quic
        return {
            "cid_length": len(quic._peer_cid.cid),
            "max_datagram_frame_size": quic._remote_max_datagram_frame_size,
            "max_idle_timeout": quic._remote_max_idle_timeout,
            "max_data": quic._remote_max_data,
        }

    async def send(self, data: bytes) -> None:
        """Send one DATAGRAM."""
        self._protocol.quic.send_datagram_frame(data)
        self._protocol.transmit()

    def write(self, data: bytes, *, stream: int = 0, end: bool = False) -> None:
        """Write to a stream, which is opened by it."""
        self._protocol.quic.send_stream_data(stream, data, end)
        self._protocol.transmit()

    def next_stream(self) -> int:
        """A bidirectional stream that is not open yet."""
        return self._protocol.quic.get_next_available_stream_id()

    async def signal(self) -> tuple[int, bytes]:
        """The stream and the payload of the next signaling frame."""
        return await self._next(self.inbox.signals, "signaling frame")

    async def stream_end(self) -> tuple[str, int, int]:
        """``reset`` or ``stop``, the stream and the code of the next end of a stream by the server."""
        return await self._next(self.inbox.stream_ends, "end of a stream")

    async def ping(self) -> None:
        """Send a PING and wait for the acknowledgement."""
        async with asyncio.timeout(PATIENCE):
            await self._protocol.ping()

    def change_connection_id(self) -> None:
        """Use another of the server's connection ids and retire the present one."""
        self._protocol.change_connection_id()

    async def ended(self) -> Ended:
        event = await self.terminated()
        return Ended(event.frame_type is None, event.error_code, event.reason_phrase)

    async def terminated(self) -> ConnectionTerminated:
        """How the server ended the connection."""
        await asyncio.wait_for(asyncio.shield(self._gone), PATIENCE)
        assert self._protocol.terminated is not None
        return self._protocol.terminated
