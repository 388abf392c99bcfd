"""Local ports through a real relay process to applications: the userspace tunnels of agent and connector."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
from pathlib import Path

import pytest

from intermediate_server.engine import Command, Forward
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE, Server, StartServer
from tests.integration.tunnels import (
    Application,
    TunnelEngine,
    application,
    connected,
    echo,
    exchange,
    tcp_backend,
    through,
    until,
)

BODY = os.urandom(1 << 16)


async def blocks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers a number with so many bodies, and its own end."""
    count = int(await reader.readline())
    for _ in range(count):
        writer.write(BODY)
        await writer.drain()


async def test_a_download_is_complete(server: Server, tunnels: TunnelEngine) -> None:
    async with application(blocks) as app:
        *_, port = await through(tunnels, server, app)
        async with asyncio.timeout(PATIENCE):
            data = await exchange(port, b"320\n")
        assert hashlib.sha256(data).digest() == hashlib.sha256(BODY * 320).digest()


async def test_an_upload_comes_back(server: Server, tunnels: TunnelEngine) -> None:
    async with application(echo) as app:
        *_, port = await through(tunnels, server, app)
        async with asyncio.timeout(PATIENCE):
            assert await exchange(port, BODY * 20) == BODY * 20


async def test_a_hundred_connections_at_once(server: Server, tunnels: TunnelEngine) -> None:
    async with application(echo) as app:
        backends, forwards, port = await through(tunnels, server, app)
        payloads = [os.urandom(20_000) for _ in range(100)]
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.gather(*(exchange(port, payload) for payload in payloads)) == payloads
        assert app.connections == 100
        assert tunnels.counters(forwards)["tcp_opened"] == 100
        assert tunnels.counters(backends)["tcp_opened"] == 100


async def test_each_direction_ends_by_itself(server: Server, tunnels: TunnelEngine) -> None:
    """A request that ends before its answer begins: the half-close goes both ways through the relay."""

    async def after_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()
        writer.write(hashlib.sha256(data).digest())
        await writer.drain()

    async with application(after_the_end) as app:
        *_, port = await through(tunnels, server, app)
        async with asyncio.timeout(PATIENCE):
            assert await exchange(port, BODY) == hashlib.sha256(BODY).digest()
        assert app.ended == ["eof"]


async def test_a_reset_goes_through(server: Server, tunnels: TunnelEngine) -> None:
    async with application(echo) as app:
        backends, forwards, port = await through(tunnels, server, app)
        reader, writer = await asyncio.open_connection(*port)
        writer.write(b"hello")
        async with asyncio.timeout(PATIENCE):
            assert await reader.readexactly(5) == b"hello"
        transport_socket = writer.get_extra_info("socket")
        transport_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()
        await tunnels.wait_counter(forwards, "tcp_aborted", 1)
        await tunnels.wait_counter(backends, "tcp_aborted", 1)
        await until(lambda: app.ended == ["reset"])
        for tunnel in (forwards, backends):
            assert tunnels.counters(tunnel)["tcp_flows"] == 0


async def test_a_refused_backend_resets_and_the_next_address_is_tried(server: Server, tunnels: TunnelEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed = unused.getsockname()[:2]
    async with application(echo) as app:
        backends, _, port = await through(tunnels, server, Application(address=closed))
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(PATIENCE):
                await exchange(port, b"x")
        await tunnels.wait_counter(backends, "tcp_refused", 1)
        await tunnels.open_backends([tcp_backend(closed, app.address)], tunnel=backends)
        async with asyncio.timeout(PATIENCE):
            assert await exchange(port, b"again") == b"again"


async def test_replaced_backends_end_the_flows_of_services_not_named_again(
    server: Server, tunnels: TunnelEngine
) -> None:
    async with application(echo) as old, application(echo) as new:
        backends, _, port = await through(tunnels, server, old)
        reader, writer = await asyncio.open_connection(*port)
        writer.write(b"one")
        async with asyncio.timeout(PATIENCE):
            assert await reader.readexactly(3) == b"one"
            # Its address has changed: what is under way stays where it is.
            await tunnels.open_backends([tcp_backend(new.address)], tunnel=backends)
            writer.write(b"two")
            assert await reader.readexactly(3) == b"two"
            assert await exchange(port, b"three") == b"three"
            assert (old.connections, new.connections) == (1, 1)
            await tunnels.open_backends([tcp_backend(old.address, service="other")], tunnel=backends)
            with pytest.raises(ConnectionResetError):
                await reader.read()
        writer.close()


async def test_tcp_survives_a_relay_that_is_killed(start_server: StartServer, tunnels: TunnelEngine) -> None:
    server = await start_server("--client-auth", "off")
    async with application(blocks) as app:
        backends, forwards, port = await through(tunnels, server, app)
        reader, writer = await asyncio.open_connection(*port)
        writer.write(b"160\n")
        async with asyncio.timeout(PATIENCE):
            data = await reader.readexactly(20 * len(BODY))
            server.signal(signal.SIGKILL)
            await server.process.wait()
            again = await start_server("--client-auth", "off", state_dir=server.state_dir)
            await tunnels.attach(backends, await connected(tunnels, again, Role.CONNECTOR, "web"))
            await tunnels.attach(forwards, await connected(tunnels, again, Role.AGENT, "web"), ["web"])
            data += await reader.read()
        writer.close()
        assert data == BODY * 160


async def test_a_slow_reader_slows_the_application(server: Server, tunnels: TunnelEngine) -> None:
    """What is under way is bounded by the buffers between, not by what the application would send."""
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readline()
        while not reader.at_eof():
            writer.write(BODY)
            await writer.drain()
            sent += len(BODY)

    async with application(endless) as app:
        *_, port = await through(tunnels, server, app)
        reader, writer = await asyncio.open_connection(*port, limit=65_536)
        writer.write(b"go\n")
        async with asyncio.timeout(PATIENCE):
            stands = -1
            while stands != sent or sent == 0:
                stands = sent
                await asyncio.sleep(0.5)
        assert sent < 32 * 2**20
        async with asyncio.timeout(PATIENCE):
            assert len(await reader.readexactly(8 * 2**20)) == 8 * 2**20
        writer.transport.abort()


async def test_sockets_ask_whether_the_other_side_still_lives(server: Server, tunnels: TunnelEngine) -> None:
    async with application(echo) as app:
        *_, port = await through(tunnels, server, app)
        reader, writer = await asyncio.open_connection(*port)
        writer.write(b"hello")
        async with asyncio.timeout(PATIENCE):
            assert await reader.readexactly(5) == b"hello"
        ours = {("local", port[1]), ("remote", app.address[1])}
        await until(lambda: ours <= kept_alive(within=75))
        writer.close()


def kept_alive(*, within: float) -> set[tuple[str, int]]:
    """Ports of connections whose keep-alive timer runs, and runs out soon enough (proc_net_tcp(5))."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, _, timer, *_ = line.split()
        kind, _, left = timer.partition(":")
        # Established, the timer of the keep-alive, in hundredths of a second.
        if (state, kind) == ("01", "02") and int(left, 16) <= within * 100:
            found |= {("local", int(local[-4:], 16)), ("remote", int(remote[-4:], 16))}
    return found


async def test_a_port_in_use_fails_the_tunnel(tunnels: TunnelEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        forward = Forward(protocol="tcp", bind=("127.0.0.1", port), service=b"web", destination=("198.18.0.1", 80))
        with pytest.raises(RuntimeError, match=f"127.0.0.1:{port}"):
            await tunnels.open_forwards([forward])


async def test_a_closed_tunnel_closes_its_ports_and_flows(server: Server, tunnels: TunnelEngine) -> None:
    async with application(echo) as app:
        _, forwards, port = await through(tunnels, server, app)
        reader, writer = await asyncio.open_connection(*port)
        writer.write(b"hello")
        async with asyncio.timeout(PATIENCE):
            assert await reader.readexactly(5) == b"hello"
            tunnels.submit(Command.CloseTunnel(forwards))
            with pytest.raises(ConnectionError):
                if await reader.read() == b"":
                    raise ConnectionResetError
            while True:
                try:
                    await exchange(port, b"x")
                except ConnectionRefusedError:
                    break
                except ConnectionResetError:
                    continue
        writer.close()
        assert tunnels.counters(forwards) == {}
