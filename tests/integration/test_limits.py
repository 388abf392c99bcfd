"""What the server allows of time, number and rate, each reached on the real one."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from pathlib import Path

import httpx
import pytest
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted

from intermediate_server.client import ClientEngine, Connection
from intermediate_server.errors import ConnectError
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE, Server, StartServer
from tests.integration.packets import read_udp, udp_packet
from tests.integration.plain_client import Client, udp
from tests.integration.relaying import dial, join, with_metrics
from tests.integration.site import APPLICATION, INNER, PACKET, free_port, received, until


async def _none_half_open(server: Server) -> bool:
    # A gauge is as old as the engine's last look around.
    return await server.metric("ztna_half_open") == 0


async def stall(server: Server, sock: socket.socket, times: int) -> None:
    """Start handshakes by a socket, each past its Retry, and let all of them lie there."""
    for _ in range(times):
        client = Client(sock, server)
        await client.retried()
        client.send()


async def test_a_handshake_that_does_not_go_on_is_given_up(start_server: StartServer) -> None:
    server = await start_server(*with_metrics(), "--handshake-timeout", "1s", "--disable-retry")
    async with udp(server) as sock, udp(server) as beside:
        Client(sock, server).send()
        await server.wait_metric('ztna_connections_total{stage="accepted"}', 1)
        good = Client(beside, server)
        await good.connected()
        await server.wait_metric('ztna_handshakes_total{outcome="timeout"}', 1)
        await until(partial(_none_half_open, server), "no handshake under way")
        assert not good.saw(ConnectionTerminated)
    assert await server.metric('ztna_connections_total{stage="admitted"}') == 1


async def test_a_silent_connection_is_closed(start_server: StartServer, engine: ClientEngine) -> None:
    server = await start_server(*with_metrics(), "--idle-timeout", "1s")
    silent = await engine.connect(server.address, ca_file=server.ca_file, server_name="ztna-server", keep_alive=0)
    await silent.register(Role.AGENT, "web")
    await server.wait_log("Connection closed", cause="idle_timeout")
    assert await server.metric("ztna_active_connections") == 0
    assert await server.metric('ztna_registered{role="agent"}') == 0


async def test_a_connection_that_registers_nothing_is_closed(start_server: StartServer, engine: ClientEngine) -> None:
    server = await start_server(*with_metrics(), "--registration-timeout", "1s")
    registered = await join(engine, server, Role.AGENT)
    closed = await (await dial(engine, server)).wait_closed()
    assert "registered" in closed.reason
    assert await server.metric("ztna_never_registered_total") == 1
    assert registered.closed is None


async def test_stalled_handshakes_of_a_few_sources_keep_nobody_out(
    start_server: StartServer, engine: ClientEngine
) -> None:
    server = await start_server(*with_metrics(), "--max-half-open", "64", "--handshake-timeout", "60s")
    async with udp(server, "127.0.0.2") as first, udp(server, "127.0.0.3") as second:
        for sock in (first, second):
            await stall(server, sock, 70)
        await server.wait_metric('ztna_handshakes_total{outcome="ignored_source"}', 120)
        # A sixteenth of 64 for the one, as much of what is left for the other.
        assert await server.metric('ztna_connections_total{stage="accepted"}') in (7, 8)
        line = await server.wait_log("Admin listening on")
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"http://{line['host']}:{line['port']}/readyz")).status_code == 200
        connector = await join(engine, server, Role.CONNECTOR)
        for number in range(20):
            agent = await join(engine, server, Role.AGENT)
            packet = udp_packet(INNER, APPLICATION, b"%d" % number)
            agent.send(packet)
            assert (await received(connector))[28:] == packet[28:]
            await agent.close()
    assert await server.metric('ztna_handshakes_total{outcome="refused_full"}') == 0


async def test_who_is_ignored_for_a_neighbours_stalled_handshake_gets_in_after_it(start_server: StartServer) -> None:
    """Its token must not be spent by the packets that were ignored: it gets no other one."""
    server = await start_server(*with_metrics(), "--max-half-open", "16", "--handshake-timeout", "1s")
    async with udp(server, "127.0.0.2") as stalled, udp(server, "127.0.0.2") as patient:
        client = Client(patient, server)
        await client.retried()
        await stall(server, stalled, 1)
        await server.wait_metric('ztna_connections_total{stage="accepted"}', 1)
        client.send()
        await server.wait_metric('ztna_handshakes_total{outcome="ignored_source"}', 1)
        await client.connected()
    assert await server.metric("ztna_retry_token_failures") == 0
    assert await server.metric('ztna_handshakes_total{outcome="timeout"}') == 1


async def test_more_connections_than_allowed_are_refused(start_server: StartServer, engine: ClientEngine) -> None:
    server = await start_server(*with_metrics(), "--max-connections", "2")
    first, second = await join(engine, server, Role.CONNECTOR), await join(engine, server, Role.AGENT)
    for number in range(5):
        with pytest.raises(ConnectError):
            await dial(engine, server)
        packet = udp_packet(INNER, APPLICATION, b"%d" % number)
        second.send(packet)
        assert await received(first) == packet, "those that are in go on"
    assert await server.metric('ztna_handshakes_total{outcome="refused_full"}') >= 5
    assert (first.closed, second.closed) == (None, None)
    await second.close()
    await server.wait_log("Connection closed")
    await join(engine, server, Role.AGENT)


async def test_one_identity_and_one_source_leave_room_for_others(
    start_server: StartServer, engine: ClientEngine
) -> None:
    bounds = ("--connections-per-identity", "3", "--connections-per-source", "8", "--registration-timeout", "120")
    server = await start_server("--metrics-port", str(free_port()), "--client-auth", "optional", *bounds)

    async def dial(cert: tuple[Path, Path] | None, host: str = "127.0.0.1") -> Connection:
        cert_file, key_file = cert or (None, None)
        return await engine.connect(
            server.address,
            ca_file=server.ca_file,
            server_name="ztna-server",
            cert_file=cert_file,
            key_file=key_file,
            bind=(host, 0),
        )

    async def good(name: str, role: Role, host: str) -> Connection:
        connection = await dial(server.certificate([f"{name}.web.ztna"]), host)
        await connection.register(role, "web")
        return connection

    async def ends(connections: list[Connection], allowed: int) -> None:
        """All but so many are closed, with the code and the reason of too many."""
        while len(connections) > allowed:
            async with asyncio.timeout(PATIENCE):
                waits = [asyncio.ensure_future(each.wait_closed()) for each in connections]
                done, rest = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for each in rest:
                each.cancel()
            assert {task.result().code for task in done} == {8}
            connections[:] = [each for each in connections if each.closed is None]

    connector = await good("connector", Role.CONNECTOR, "127.0.0.2")
    stolen = server.certificate(["agent.web.ztna"])
    taken = list(await asyncio.gather(*(dial(stolen) for _ in range(20))))
    await ends(taken, 3)
    assert len(taken) == 3
    # With the same certificate it is as full elsewhere, and without one it is the source that is full.
    elsewhere = [await dial(stolen, "127.0.0.3")]
    await ends(elsewhere, 0)
    anonymous = list(await asyncio.gather(*(dial(None) for _ in range(20))))
    await ends(anonymous, 5)
    assert len(anonymous) == 5
    agent = await good("agent", Role.AGENT, "127.0.0.2")
    agent.send(PACKET)
    assert read_udp(await received(connector)).payload == b"x"
    assert await server.metric('ztna_connections_rejected_total{cause="connections"}') == 17 + 1 + 15
    # Who leaves makes room.
    await taken.pop().close()
    await server.wait_metric('ztna_connections_total{stage="closed"}', 34)
    await good("agent", Role.AGENT, "127.0.0.1")


async def test_limits_that_do_not_fit_are_lowered(start_server: StartServer, engine: ClientEngine) -> None:
    server = await start_server(*with_metrics(), "--memory-budget", "64MiB", "--connections-per-identity", "5000")
    assert "connections-per-identity is 11 and not 5000" in (await server.wait_log("connections-per-identity"))["event"]
    room = await server.wait_log("Room for connections")
    assert (room["in_all"], room["per_source"], room["per_identity"]) == (491, 23, 11)
    await join(engine, server, Role.AGENT)


async def test_a_source_that_starts_too_many_handshakes_is_refused(
    start_server: StartServer, engine: ClientEngine
) -> None:
    rate = ("--handshakes-per-source", "1", "--handshake-burst-per-source", "3")
    server = await start_server(*with_metrics(), *rate)
    async with udp(server, "127.0.0.2") as sock:
        another = Client(sock, server)
        tries = await asyncio.gather(
            another.connected(), *(dial(engine, server) for _ in range(40)), return_exceptions=True
        )
        assert another.saw(HandshakeCompleted), "another source has its own rate"
    refused = [each for each in tries if isinstance(each, ConnectError)]
    assert 0 < len(refused) < 40
    assert await server.metric('ztna_handshakes_total{outcome="refused_rate"}') > 0
    await server.wait_log("their source starts too many")


async def test_a_kernel_that_gives_small_buffers_is_told_of(start_server: StartServer) -> None:
    server = await start_server("--client-auth", "optional", "--socket-buffer-bytes", "1GiB")
    for way, sysctl in (("receive", "rmem_max"), ("send", "wmem_max")):
        warning = await server.wait_log(f"the kernel gave a UDP {way} buffer of")
        assert warning["level"] == "warning"
        assert f"net.core.{sysctl}=1073741824" in warning["event"]
