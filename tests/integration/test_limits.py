"""What the server allows of time, number and rate, each reached on the real one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from intermediate_server.client import ClientEngine, Connection
from intermediate_server.errors import ConnectError
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE, Server, StartServer
from tests.integration.peers import read_udp
from tests.integration.site import PACKET, free_port, received, until
from tests.integration.test_faults import Client, udp
from tests.integration.test_relay import dial, join, with_metrics


async def wait_metric(server: Server, sample: str, value: float) -> None:
    """Wait until a sample has reached ``value``."""

    async def reached() -> bool:
        return await server.metric(sample) >= value

    await until(reached, f"{sample} {value}")


async def test_a_handshake_that_does_not_go_on_is_given_up(start_server: StartServer) -> None:
    server = await start_server(*with_metrics(), "--handshake-timeout", "1s", "--disable-retry")
    async with udp(server) as sock:
        Client(sock, server).send()
        await wait_metric(server, 'ztna_connections_total{stage="accepted"}', 1)
        await wait_metric(server, 'ztna_handshakes_total{outcome="timeout"}', 1)
        # A gauge is as old as the engine's last look around.
        await wait_metric(server, "ztna_half_open", 0)
    assert await server.metric('ztna_connections_total{stage="admitted"}') == 0


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


async def test_more_connections_than_allowed_are_refused(start_server: StartServer, engine: ClientEngine) -> None:
    server = await start_server(*with_metrics(), "--max-connections", "2")
    first, second = await join(engine, server, Role.CONNECTOR), await join(engine, server, Role.AGENT)
    with pytest.raises(ConnectError):
        await dial(engine, server)
    assert await server.metric('ztna_handshakes_total{outcome="refused_full"}') >= 1
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
    assert await server.metric('ztna_connections_refused_total{cause="connections"}') == 17 + 1 + 15
    # Who leaves makes room.
    await taken.pop().close()
    await wait_metric(server, 'ztna_connections_total{stage="closed"}', 34)
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
    tries = await asyncio.gather(*(dial(engine, server) for _ in range(40)), return_exceptions=True)
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
