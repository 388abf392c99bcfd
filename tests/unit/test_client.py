"""The client library where things go wrong, and its answers to what a relay may send."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.sessions_rig import moved_time

from intermediate_server.client import ClientEngine, Connection, connect
from intermediate_server.client.connection import MAX_RECEIVED, REGISTRATION_WAITS
from intermediate_server.client.hosts import split_server
from intermediate_server.engine import Command, Event, Totals
from intermediate_server.errors import ConnectError, ConnectionClosed, RegistrationError
from intermediate_server.pki import ensure_development
from intermediate_server.types import Address, Role
from intermediate_server.wire.datagrams import Ack, Nack, NackStatus, ObservedAddress, encode

HERE = Address.of(("192.0.2.1", 5))


class TestAddressOfTheServer:
    @pytest.mark.parametrize(
        ("text", "pair"),
        [
            ("relay.example:4433", ("relay.example", 4433)),
            ("relay.example", ("relay.example", 4433)),
            ("2001:db8::1", ("2001:db8::1", 4433)),
            ("192.0.2.1:1", ("192.0.2.1", 1)),
            ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
        ],
    )
    def test_what_is_read(self, text: str, pair: tuple[str, int]) -> None:
        assert split_server(text) == pair

    @pytest.mark.parametrize(
        "text", ["", "relay:", ":4433", "relay:port", "relay:70000", "relay:-1", "relay:0x1", "relay:" + "9" * 5000]
    )
    def test_what_is_not(self, text: str) -> None:
        with pytest.raises(ConnectError, match=r"host:port|port"):
            split_server(text)


class TestConnecting:
    @pytest.fixture
    async def engine(self) -> AsyncIterator[ClientEngine]:
        async with ClientEngine() as engine:
            yield engine

    @pytest.fixture
    def nobody(self) -> Iterator[socket.socket]:
        """A port that takes datagrams and answers none."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            silent.setblocking(False)
            yield silent

    async def test_a_name_that_does_not_resolve(self, engine: ClientEngine) -> None:
        for name in ("no-such-host.invalid", "a" * 64, "a..b", "a\0b", "\udc80"):
            with pytest.raises(ConnectError, match=r"cannot be resolved|is not a host name"):
                await engine.connect(f"{name}:1", verify=False)

    async def test_nothing_to_trust(self, engine: ClientEngine, nobody: socket.socket) -> None:
        with pytest.raises(ConnectError, match="cannot use the certificates"):
            await engine.connect(nobody.getsockname())

    @pytest.mark.parametrize("which", ["ca_file", "cert_file", "key_file"])
    @pytest.mark.parametrize("content", [None, b"", b"not PEM", b"-----BEGIN CERTIFICATE-----\nAA==\n"])
    async def test_files_that_cannot_be_used(
        self, engine: ClientEngine, nobody: socket.socket, tmp_path: Path, which: str, content: bytes | None
    ) -> None:
        made = ensure_development(tmp_path / "state", names=())
        files = {"ca_file": made.ca_cert, "cert_file": made.cert, "key_file": made.key}
        files[which] = tmp_path / "bad"
        if content is not None:
            files[which].write_bytes(content)
        with pytest.raises(ConnectError, match="cannot use the certificates") as caught:
            await engine.connect(nobody.getsockname(), **files)  # type: ignore[arg-type]  # only files
        assert "PRIVATE KEY" not in str(caught.value)

    async def test_a_certificate_without_its_key(
        self, engine: ClientEngine, nobody: socket.socket, tmp_path: Path
    ) -> None:
        made = ensure_development(tmp_path, names=())
        with pytest.raises(ConnectError):
            await engine.connect(nobody.getsockname(), ca_file=made.ca_cert, cert_file=made.cert)

    async def test_a_server_that_does_not_answer(self, engine: ClientEngine, nobody: socket.socket) -> None:
        with pytest.raises(ConnectError, match="no answer") as caught:
            await engine.connect(nobody.getsockname(), verify=False, handshake_timeout=0.2)
        assert caught.value.cause == "silent"

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    async def test_a_closed_port_is_told_at_once(self, engine: ClientEngine, host: str) -> None:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as closed:
            closed.bind((host, 0))
            port = closed.getsockname()[1]
        async with asyncio.timeout(30):
            with pytest.raises(ConnectError, match=f"nothing listens on UDP port {port}") as caught:
                await engine.connect((host, port), verify=False, handshake_timeout=600)
        assert caught.value.cause == "port_closed"

    async def test_one_that_is_cancelled_ends_in_the_engine(self, engine: ClientEngine, nobody: socket.socket) -> None:
        """It falls silent, without a farewell: that would begin a handshake at a relay that comes back."""
        loop = asyncio.get_running_loop()
        first = asyncio.ensure_future(engine.connect(nobody.getsockname(), verify=False, handshake_timeout=600))
        _, cancelled = await loop.sock_recvfrom(nobody, 2048)
        first.cancel()
        # For as long as one that is not cancelled takes to repeat itself.
        second = asyncio.ensure_future(engine.connect(nobody.getsockname(), verify=False, handshake_timeout=600))
        heard: list[object] = []
        async with asyncio.timeout(60):
            while len(heard) - heard.count(cancelled) < 3:
                heard.append((await loop.sock_recvfrom(nobody, 2048))[1])
        second.cancel()
        # What it repeated before the engine knew.
        assert heard.count(cancelled) <= 1

    async def test_one_that_is_cancelled_leaves_the_others_alone(
        self, engine: ClientEngine, nobody: socket.socket
    ) -> None:
        first = asyncio.ensure_future(engine.connect(nobody.getsockname(), verify=False, handshake_timeout=0.5))
        second = asyncio.ensure_future(engine.connect(nobody.getsockname(), verify=False, handshake_timeout=0.5))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(ConnectError):
            await second

    @pytest.mark.parametrize("asked", [False, True])
    async def test_leaving_ends_what_is_under_way(self, nobody: socket.socket, asked: bool) -> None:
        async with ClientEngine() as engine:
            opening = asyncio.ensure_future(engine.connect(nobody.getsockname(), verify=False, handshake_timeout=60))
            if asked:
                await asyncio.get_running_loop().sock_recv(nobody, 2048)
            else:
                await asyncio.sleep(0)
        with pytest.raises(ConnectError, match="was left"):
            await asyncio.wait_for(opening, 10)

    async def test_the_short_form_says_the_same(self, nobody: socket.socket) -> None:
        with pytest.raises(ConnectError, match="cannot use the certificates"):
            async with connect(nobody.getsockname(), ca_file="/nowhere.pem"):
                pass


class Line:
    """A connection whose other end is the test."""

    def __init__(self) -> None:
        self.sent: list[Command] = []
        self.connection = Connection(7, HERE, self.sent.append)

    def receive(self, *datagrams: bytes) -> None:
        self.connection.handle(Event.Datagrams(7, list(datagrams)))

    def end(self) -> None:
        self.connection.handle(Event.Closed(7, "application", 2, "go away", 5, Totals(sent_bytes=9)))


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
async def skip_time() -> AsyncIterator[Callable[[float], None]]:
    """Moves the loop's clock."""
    with moved_time() as clocks:

        def skip(seconds: float) -> None:
            clocks.skew += seconds

        yield skip


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class TestRegistering:
    async def test_an_ack_ends_it(self, line: Line) -> None:
        task = asyncio.ensure_future(line.connection.register(Role.AGENT, "web"))
        await turns()
        line.receive(encode(Ack("other")), encode(Nack(NackStatus.NOT_UTF8)), b"\x12\x00\x09web")
        await turns()
        assert not task.done(), "answers for others are not ours"
        line.receive(encode(Ack("web")))
        await task
        assert len(line.sent) == 1

    async def test_a_nack_is_an_error_that_says_where_to_look(self, line: Line) -> None:
        task = asyncio.ensure_future(line.connection.register(Role.CONNECTOR, "web"))
        await turns()
        line.receive(encode(Nack(NackStatus.NOT_AUTHORISED, "web")))
        with pytest.raises(
            RegistrationError, match=r"connector for service 'web' refused .* the server's log says why"
        ):
            await task

    async def test_silence_is_answered_three_times(self, line: Line, skip_time: Callable[[float], None]) -> None:
        task = asyncio.ensure_future(line.connection.register(Role.AGENT, "web"))
        for tries, wait in enumerate(REGISTRATION_WAITS, start=1):
            await turns()
            assert len(line.sent) == tries
            skip_time(wait + 0.01)
        with pytest.raises(RegistrationError, match="no answer"):
            await asyncio.wait_for(task, 5)
        assert len(line.sent) == 3

    async def test_a_late_ack_is_as_good(self, line: Line, skip_time: Callable[[float], None]) -> None:
        task = asyncio.ensure_future(line.connection.register(Role.AGENT, "web"))
        await turns()
        skip_time(REGISTRATION_WAITS[0] + 0.01)
        await turns()
        line.receive(encode(Ack("web")))
        await task

    async def test_an_end_meanwhile_is_told(self, line: Line) -> None:
        task = asyncio.ensure_future(line.connection.register(Role.AGENT, "web"))
        await turns()
        line.end()
        with pytest.raises(ConnectionClosed, match="go away"):
            await task

    @pytest.mark.parametrize("service", ["x" * 256, "ü" * 128])
    async def test_a_service_id_that_does_not_fit(self, line: Line, service: str) -> None:
        with pytest.raises(ValueError, match="255"):
            await line.connection.register(Role.AGENT, service)
        assert line.sent == []


class TestReceiving:
    async def test_packets_come_in_order(self, line: Line) -> None:
        line.receive(b"\x45one", b"\x60two")
        assert [await line.connection.receive(), await line.connection.receive()] == [b"\x45one", b"\x60two"]

    async def test_whoever_waits_gets_the_next(self, line: Line) -> None:
        waiting = asyncio.ensure_future(line.connection.receive())
        await turns()
        line.receive(b"\x45")
        assert await waiting == b"\x45"

    async def test_the_oldest_goes_when_nobody_takes_them(self, line: Line) -> None:
        for number in range(MAX_RECEIVED + 10):
            line.receive(b"\x45" + number.to_bytes(4, "big"))
        assert line.connection.dropped == 10
        assert await line.connection.receive() == b"\x45" + (10).to_bytes(4, "big")

    async def test_what_has_arrived_is_given_out_after_the_end_too(self, line: Line) -> None:
        line.receive(b"\x45")
        line.end()
        assert await line.connection.receive() == b"\x45"
        with pytest.raises(ConnectionClosed):
            await line.connection.receive()

    async def test_addresses(self, line: Line) -> None:
        seen: list[Address] = []
        line.connection.on_observed = seen.append
        first, second = Address.of(("192.0.2.7", 1)), Address.of(("2001:db8::7", 2))
        waiting = asyncio.ensure_future(line.connection.wait_observed())
        await turns()
        line.receive(encode(ObservedAddress(first)))
        assert await waiting == first
        changed = asyncio.ensure_future(line.connection.wait_observed(other_than=first))
        await turns()
        line.receive(encode(ObservedAddress(first)), encode(ObservedAddress(second)))
        assert await changed == second
        assert seen == [first, first, second]
        line.connection.handle(Event.ObservedAddress(7, ("::ffff:192.0.2.9", 3)))
        assert await line.connection.wait_observed_frame() == Address.of(("192.0.2.9", 3))

    @pytest.mark.parametrize("junk", [b"", b"\x01", b"\x02" + b"\0" * 10, b"\x12", b"\x13\x02\xff", b"\xff" * 9])
    async def test_junk_hurts_nothing(self, line: Line, junk: bytes) -> None:
        line.receive(junk, b"\x45packet")
        assert line.connection.observed_address is None
        while (packet := await line.connection.receive()) != b"\x45packet":
            assert packet == junk


class TestTheEnd:
    async def test_everything_that_waits_is_told(self, line: Line) -> None:
        connection = line.connection
        waits = [
            asyncio.ensure_future(wait)
            for wait in (connection.receive(), connection.wait_observed(), connection.inspect())
        ]
        ended = asyncio.ensure_future(connection.wait_closed())
        await turns()
        line.end()
        for wait in waits:
            with pytest.raises(ConnectionClosed, match=r"closed \(application, code 2\): go away"):
                await wait
        closed = await ended
        assert (closed.cause, closed.code, closed.reason) == ("application", 2, "go away")
        assert closed.totals is not None
        assert closed.totals.sent_bytes == 9

    async def test_nothing_can_be_sent_after_it(self, line: Line) -> None:
        line.end()
        sends: list[Callable[[], object]] = [
            lambda: line.connection.send(b"\x45"),
            lambda: line.connection.send(b"\x45", service="web"),
            lambda: line.connection.send_many([b"\x45"]),
            line.connection.rebind,
        ]
        for send in sends:
            with pytest.raises(ConnectionClosed):
                send()
        with pytest.raises(ConnectionClosed):
            await line.connection.inspect()
        assert line.sent == []

    async def test_closing_twice_is_closing_once(self, line: Line) -> None:
        first = asyncio.ensure_future(line.connection.close(3, "bye"))
        await turns()
        (command,) = line.sent
        assert isinstance(command, Command.Close)
        assert (command.code, command.reason) == (3, "bye")
        line.end()
        assert await first == await line.connection.close()
        assert len(line.sent) == 1
