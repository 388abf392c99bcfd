"""A relay that is asked to join, as an engine whose control plane is the test; and two kinds of clients for it."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, QuicEvent, StreamDataReceived
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.engine import ClientTls, Command, ConnectConfig, Engine, Event, ListenConfig, ServerTls
from intermediate_server.engine.bridge import Bridge
from intermediate_server.pki import keys
from tests.integration.conftest import PATIENCE
from tests.integration.packets import Address
from tests.integration.site import until

ALPN = "ztna-join/1"
NAME = "relay.test"
MAX_MESSAGE = 16_384
REQUEST = b"please"


class Ca:
    """A CA with the certificates that it signs."""

    def __init__(self, name: str = "ca") -> None:
        now = keys.utc_now()
        self.key = keys.new_key()
        self.certificate = keys.sign_itself(
            name, self.key, not_before=now - timedelta(days=300), not_after=now + timedelta(days=300)
        )

    @property
    def pem(self) -> bytes:
        return keys.certificate_pem(self.certificate)

    @property
    def pin(self) -> bytes:
        return self.certificate.fingerprint(SHA256())

    def sign(
        self, key: keys.PrivateKey, *names: str, usage: x509.ObjectIdentifier = keys.SERVER_AUTH, days: int = 100
    ) -> x509.Certificate:
        """A certificate for these names, which ends in so many days, or has ended."""
        end = keys.utc_now() + timedelta(days=days)
        return keys.sign(
            subject=keys.common_name("leaf"),
            public_key=key.public_key(),
            authority=self.certificate,
            authority_key=self.key,
            names=[x509.DNSName(name) for name in names],
            usage=usage,
            not_before=end - timedelta(days=120),
            not_after=end,
        )


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


class _Side:
    """An engine on the running loop."""

    def __init__(self, *, outbox_capacity: int = 65_536) -> None:
        self.engine = Engine(outbox_capacity=outbox_capacity)
        self.bridge = Bridge(self.engine)
        self.events: list[Event] = []

    async def until(self, counter: str, value: int) -> None:
        """Wait until a counter has so much."""

        async def reached() -> bool:
            return self.engine.counters()[counter] >= value

        await until(reached, f"{counter} = {value}")

    async def close(self) -> None:
        await asyncio.to_thread(self.engine.close, 1_000)
        self.bridge.stop()
        assert self.bridge.dispatch_errors == 0


class JoinRelay(_Side):
    """A relay; a test takes its requests and replies to them."""

    def __init__(self, *, outbox_capacity: int) -> None:
        super().__init__(outbox_capacity=outbox_capacity)
        self.requests: asyncio.Queue[Event.JoinRequest] = asyncio.Queue()
        self.address: Address = ("", 0)

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        ca: Ca,
        certificate: x509.Certificate | None = None,
        key: keys.PrivateKey | None = None,
        *,
        shown: bytes | None = None,
        joining: bool = True,
        outbox_capacity: int = 65_536,
    ) -> AsyncIterator[JoinRelay]:
        """One that shows its own certificate and ``shown`` behind it, by default its CA; or none that can be joined."""
        relay = cls(outbox_capacity=outbox_capacity)
        key = key or keys.new_key()
        certificate = certificate or ca.sign(key, NAME)
        chain = ca.pem if shown is None else shown
        tls = ServerTls(
            certificate_pem=keys.certificate_pem(certificate),
            key_pem=keys.key_pem(key),
            client_auth="off",
            join_chain_pem=chain if joining else None,
        )
        config = ListenConfig(
            bind=[("127.0.0.1", 0)],
            tls=tls,
            token_key=bytes(32),
            reset_key=bytes(32),
            joins_per_source=1_000,
            join_burst_per_source=1_000,
            joins_per_second=1_000,
        )
        try:
            relay.address = relay.engine.listen(config)[0]
            relay.bridge.start(relay._dispatch)
            yield relay
        finally:
            await relay.close()

    def _dispatch(self, event: Event) -> None:
        if isinstance(event, Event.JoinRequest):
            self.requests.put_nowait(event)
        else:
            self.events.append(event)

    async def request(self) -> Event.JoinRequest:
        async with asyncio.timeout(PATIENCE):
            return await self.requests.get()

    def reply(self, request: Event.JoinRequest, data: bytes = b"welcome", *, refused: bool = False) -> None:
        self.bridge.submit(Command.JoinReply(request.request, data, refused))


class Asker(_Side):
    """Our own client."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Event.Answered | Event.ConnectFailed]] = {}

    @classmethod
    @asynccontextmanager
    async def start(cls) -> AsyncIterator[Asker]:
        asker = cls()
        try:
            asker.bridge.start(asker._dispatch)
            yield asker
        finally:
            await asker.close()

    def _dispatch(self, event: Event) -> None:
        assert isinstance(event, Event.Answered | Event.ConnectFailed)
        self._asked.pop(event.request).set_result(event)

    def ask(
        self,
        relay: JoinRelay,
        data: bytes = REQUEST,
        *,
        source: str = "127.0.0.1",
        server_name: str = NAME,
        pin: bytes | None = None,
        identity: tuple[bytes, bytes] | None = None,
    ) -> asyncio.Future[Event.Answered | Event.ConnectFailed]:
        """Ask; without a ``pin`` any relay is trusted. ``identity`` is a chain and its key, PEM."""
        certificate_pem, key_pem = identity or (None, None)
        if pin is None:
            tls = ClientTls(verify=False, certificate_pem=certificate_pem, key_pem=key_pem)
        else:
            tls = ClientTls(pin=pin, certificate_pem=certificate_pem, key_pem=key_pem)
        config = ConnectConfig(remote=relay.address, server_name=server_name, tls=tls, bind=(source, 0))
        number = next(self._numbers)
        self._asked[number] = asked = asyncio.get_running_loop().create_future()
        self.bridge.submit(Command.Ask(number, config, data))
        return asked


class Raw(QuicConnectionProtocol):
    """A client on aioquic, which does what it is told to whatever the relay allows."""

    def __init__(self, quic: QuicConnection) -> None:
        super().__init__(quic)
        self.quic = quic
        self.answer = b""
        self.complete, self.finished = asyncio.Event(), asyncio.Event()
        self.ended: asyncio.Future[ConnectionTerminated] = asyncio.get_running_loop().create_future()

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        relay: JoinRelay,
        *alpn: str,
        source: str = "127.0.0.1",
        reads: bool = True,
        certificates: Sequence[x509.Certificate] = (),
        key: keys.PrivateKey | None = None,
    ) -> AsyncIterator[Raw]:
        """A client that has begun its handshake. ``key`` need not be that of the first certificate.

        Without ``reads`` the window of its stream stays as it is, which is 10 bytes.
        """
        configuration = QuicConfiguration(
            alpn_protocols=list(alpn or (ALPN,)),
            server_name=NAME,
            verify_mode=ssl.CERT_NONE,
            idle_timeout=60.0,
            max_stream_data=1 << 20 if reads else 10,
            max_datagram_frame_size=65_536,
        )
        if certificates:
            configuration.certificate, configuration.private_key = certificates[0], key
            configuration.certificate_chain = list(certificates[1:])
        loop = asyncio.get_running_loop()
        _, raw = await loop.create_datagram_endpoint(
            lambda: cls(QuicConnection(configuration=configuration)), local_addr=(source, 0)
        )
        try:
            if not reads:
                raw.quic._write_stream_limits = lambda *_, **__: None  # type: ignore[method-assign]
            raw.connect(relay.address)
            yield raw
        finally:
            raw.close()
            if raw._transport is not None:
                raw._transport.close()

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, HandshakeCompleted):
            self.complete.set()
        elif isinstance(event, StreamDataReceived):
            self.answer += event.data
            if event.end_stream:
                self.finished.set()
        elif isinstance(event, ConnectionTerminated) and not self.ended.done():
            self.ended.set_result(event)

    async def connected(self) -> Raw:
        async with asyncio.timeout(PATIENCE):
            await self.complete.wait()
        return self

    def send(self, data: bytes, *, end: bool = True, stream: int = 0) -> None:
        """Send on a stream, also one that the relay does not allow."""
        self.quic._remote_max_streams_bidi = self.quic._remote_max_streams_uni = 99
        self.quic.send_stream_data(stream, data, end_stream=end)
        self.transmit()

    async def replied(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            await self.finished.wait()
        return self.answer

    async def closed(self) -> int:
        """The code with which the relay has closed the connection."""
        async with asyncio.timeout(PATIENCE):
            return (await asyncio.shield(self.ended)).error_code
