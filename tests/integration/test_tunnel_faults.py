"""What goes wrong behind a local port, and how both ends tell: no connector, a backend that is down, resets."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import termios
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from intermediate_server.engine import Command
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE, Server
from tests.integration.tunnels import (
    TunnelEngine,
    application,
    connected,
    echo,
    exchange,
    tcp_backend,
    tcp_forward,
    through,
    until,
)


async def refuses(port: tuple[str, int]) -> None:
    """Nothing listens there."""
    with pytest.raises(ConnectionRefusedError):
        async with asyncio.timeout(PATIENCE):
            await exchange(port, b"x")


async def test_a_port_refuses_while_its_service_cannot_be_reached(server: Server, tunnels: TunnelEngine) -> None:
    """Without a connection, unacknowledged, without a connector: nothing listens, and nobody is let in for nothing."""
    async with application(echo) as app:
        forwards, [port] = await tunnels.open_forwards([tcp_forward()])
        agent = await connected(tunnels, server, Role.AGENT, "web")
        await refuses(port)
        await tunnels.attach(forwards, agent)
        await refuses(port)
        await tunnels.attach(forwards, agent, ["web"])
        assert tunnels.connectors == {(forwards, "web"): False}
        await refuses(port)
        assert tunnels.counters(forwards)["tcp_opened"] == 0
        backends = await tunnels.open_backends([tcp_backend(app.address)])
        connector = await connected(tunnels, server, Role.CONNECTOR, "web")
        await tunnels.attach(backends, connector)
        await until(lambda: tunnels.connectors[forwards, "web"])
        async with asyncio.timeout(PATIENCE):
            assert await exchange(port, b"x") == b"x"
        await connector.close()
        with pytest.raises(ConnectionError):
            # The first one to come finds out, if no question has.
            async with asyncio.timeout(PATIENCE):
                await exchange(port, b"x")
        await until(lambda: not tunnels.connectors[forwards, "web"])
        await refuses(port)


async def test_a_port_that_another_program_has_taken_meanwhile(server: Server, tunnels: TunnelEngine) -> None:
    async with application(echo) as app:
        backends = await tunnels.open_backends([tcp_backend(app.address)])
        await tunnels.attach(backends, await connected(tunnels, server, Role.CONNECTOR, "web"))
        forwards, [port] = await tunnels.open_forwards([tcp_forward()])

        def told() -> list[str | None]:
            return [notice.error for notice in tunnels.notices if notice.subject == "port"]

        with socket.create_server(port):
            await tunnels.attach(forwards, await connected(tunnels, server, Role.AGENT, "web"), ["web"])
            await until(lambda: len(told()) == 1)
            assert "Address already in use" in str(told()[0])
        await until(lambda: told()[1:] == [None])
        async with asyncio.timeout(PATIENCE):
            assert await exchange(port, b"x") == b"x"


@pytest.mark.parametrize("size", [100, 3_000_000])
async def test_what_was_said_before_a_reset_is_delivered(server: Server, tunnels: TunnelEngine, size: int) -> None:
    """An application that answers early and closes with the request unread: its kernel sends a reset."""
    answer = b"HTTP/1.1 413 Content Too Large\r\n\r\n" + bytes(size)

    async def too_large(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        sent = writer.get_extra_info("socket")
        # Its kernel would discard what it has not sent: that is no fault of ours.
        await until(
            lambda: (
                writer.transport.get_write_buffer_size() == 0 and not any(fcntl.ioctl(sent, termios.TIOCOUTQ, bytes(4)))
            )
        )

    async with application(too_large) as app:
        backends, forwards, port = await through(tunnels, server, app)
        for _ in range(20):
            reader, writer = await asyncio.open_connection(*port)
            got = b""
            async with asyncio.timeout(PATIENCE):
                writer.write(bytes(4_000_000))
                with suppress(ConnectionError):
                    while data := await reader.read(65_536):
                        got += data
            assert len(got) == len(answer)
            writer.transport.abort()
        for tunnel in (forwards, backends):
            await until(lambda tunnel=tunnel: tunnels.counters(tunnel)["tcp_flows"] == 0)  # type: ignore[misc]


async def test_a_reset_after_the_end_is_noticed(server: Server, tunnels: TunnelEngine) -> None:
    """An application that ended its half and then vanished, while its client does not look."""
    vanish = asyncio.Event()

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write_eof()
        await vanish.wait()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    async with application(half) as app:
        backends, forwards, port = await through(tunnels, server, app)
        reader, writer = await asyncio.open_connection(*port)
        writer.write(b"x")
        async with asyncio.timeout(PATIENCE):
            assert await reader.read() == b""
        vanish.set()
        for tunnel in (forwards, backends):
            await until(lambda tunnel=tunnel: tunnels.counters(tunnel)["tcp_flows"] == 0)  # type: ignore[misc]
        writer.close()


@contextmanager
def black_hole() -> Iterator[tuple[str, int]]:
    """An address that answers no SYN: the queue of its listener is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as stack:
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield full.getsockname()


async def test_a_silent_first_backend_costs_little_and_is_remembered(server: Server, tunnels: TunnelEngine) -> None:
    loop = asyncio.get_running_loop()
    async with application(echo) as app:
        with black_hole() as hole:
            backends, _, port = await through(tunnels, server, app)
            await tunnels.open_backends([tcp_backend(hole, app.address)], tunnel=backends)
            begun = loop.time()
            async with asyncio.timeout(PATIENCE):
                for _ in range(20):
                    assert await exchange(port, b"x") == b"x"
            # Twenty times the quarter of a second that it costs once, not to speak of three.
            assert loop.time() - begun < 5
        said = {notice.address: notice.error for notice in tunnels.notices if notice.subject == "backend"}
        assert said == {hole: "did not answer within 0.25 s", app.address: None}


async def test_a_backend_that_is_down_is_told_at_the_start_and_when_it_is_asked_for(
    server: Server, tunnels: TunnelEngine
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed = unused.getsockname()[:2]

    def told(subject: str) -> list[tuple[bytes, tuple[str, int] | None, str | None]]:
        notices = [notice for notice in tunnels.notices if notice.subject == subject]
        return [(notice.service, notice.address, notice.error) for notice in notices]

    backends = await tunnels.open_backends([tcp_backend(closed)])
    tunnels.submit(Command.OpenBackends(backends, [tcp_backend(closed)], try_once=True))
    forwards, [port] = await tunnels.open_forwards([tcp_forward()])
    await tunnels.attach(backends, await connected(tunnels, server, Role.CONNECTOR, "web"))
    await tunnels.attach(forwards, await connected(tunnels, server, Role.AGENT, "web"), ["web"])
    for _ in range(3):
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(PATIENCE):
                await exchange(port, b"x")
    await until(lambda: len(told("flow")) == 1)
    assert told("backend") == [(b"web", closed, "refused the connection")]
    assert told("flow") == [(b"web", None, "the connection was refused behind its connector")]
