"""Agent and connector without root under many connections: nothing is lost, and nothing grows without bound."""

from __future__ import annotations

import asyncio
import resource
from dataclasses import dataclass

import psutil
import pytest

from intermediate_server.testing import Agent, Connector, Relay
from intermediate_server.testing.plugin import StartAgent, StartApplication, StartConnector, StartRelay
from intermediate_server.testing.programs import PATIENCE

CONNECTIONS = 500
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Clients:
    """All that is between the two sockets of a connection."""

    relay: Relay
    connector: Connector
    agent: Agent

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.agent.addresses[0].rpartition(":")
        return await asyncio.open_connection(host, int(port))

    def resident(self) -> dict[str, int]:
        """Bytes of memory that each program has now."""
        programs = {"relay": self.relay, "connector": self.connector, "agent": self.agent}
        return {name: psutil.Process(each.process.pid).memory_info().rss for name, each in programs.items()}

    def bounded(self, before: dict[str, int], *, each: float, connections: int) -> None:
        """Assert that no program has grown by more than ``each`` bytes for a connection."""
        for name, now in self.resident().items():
            grown = now - before[name]
            print(f"{name}: {grown / MIB:.1f} MiB for {connections} connections")
            assert grown < each * connections, f"{name} has grown by {grown / MIB:.0f} MiB"

    async def forgotten(self) -> None:
        """Wait until no flow is left at either client; a reset that was lost is missed by a keep-alive after 75 s."""
        for client in (self.agent, self.connector):
            async with asyncio.timeout(6 * PATIENCE):
                while (await client.status())["tunnel"]["tcp_flows"] > 0:  # noqa: ASYNC110  another process decides
                    await asyncio.sleep(0.05)


def open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4 * CONNECTIONS:
        pytest.skip(f"only {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * CONNECTIONS), hard))


@pytest.fixture
async def clients(
    request: pytest.FixtureRequest,
    start_relay: StartRelay,
    start_application: StartApplication,
    start_connector: StartConnector,
    start_agent: StartAgent,
) -> Clients:
    """A local port that leads to an application, whose kind is the parameter."""
    open_files()
    relay = await start_relay()
    application = await start_application(request.param)
    connector = await start_connector(relay, {"web": "tcp://{}:{}".format(*application.address)})
    return Clients(relay, connector, await start_agent(relay, [("tcp", "web")]))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("clients", ["tcp-echo"], indirect=True)
async def test_five_hundred_connections_at_once(clients: Clients) -> None:
    before = clients.resident()
    all_open, measured = asyncio.Barrier(CONNECTIONS + 1), asyncio.Event()

    async def one(number: int) -> None:
        reader, writer = await clients.dial()
        sent = number.to_bytes(2) * 4_096
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent
        # Nobody ends before everybody has been served: they are open at once.
        await all_open.wait()
        await measured.wait()
        writer.write_eof()
        assert await reader.read() == b"", "the end comes back too"
        writer.close()

    async def measure() -> None:
        await all_open.wait()
        clients.bounded(before, each=MIB / 4, connections=CONNECTIONS)
        measured.set()

    async with asyncio.timeout(200), asyncio.TaskGroup() as group:
        group.create_task(measure())
        for number in range(CONNECTIONS):
            group.create_task(one(number))
    await clients.forgotten()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("clients", ["tcp-echo"], indirect=True)
async def test_five_hundred_that_end_in_every_way(clients: Clients) -> None:
    before = clients.resident()
    sent = bytes(range(256)) * 64

    async def one(number: int) -> None:
        reader, writer = await clients.dial()
        writer.write(sent)
        match number % 4:
            case 0:  # Says that it has ended, and still gets all there is.
                writer.write_eof()
                assert await reader.read() == sent
                writer.close()
            case 1:  # Gets all, and resets.
                assert await reader.readexactly(len(sent)) == sent
                writer.transport.abort()
            case 2:  # Resets while it gets it.
                await reader.read(1)
                writer.transport.abort()
            case _:  # Says that it has ended, and resets without reading.
                writer.write_eof()
                writer.transport.abort()

    for _ in range(3):
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for number in range(CONNECTIONS):
                group.create_task(one(number))
        await clients.forgotten()
    # What was used by flows is given back when they are gone.
    clients.bounded(before, each=MIB / 16, connections=CONNECTIONS)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("clients", ["http"], indirect=True)
async def test_readers_that_stop_cost_a_bounded_memory(clients: Clients) -> None:
    before = clients.resident()
    request = f"GET /bytes/{100 * MIB} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    stalled = []
    for _ in range(CONNECTIONS // 5):
        reader, writer = await clients.dial()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request)
        stalled.append((reader, writer))
    # They ask for ten gigabytes. All who hold them back fill up, and then nothing moves any more.
    async with asyncio.timeout(120):
        moved, seen = -1, 0
        while moved != seen:
            moved = seen
            await asyncio.sleep(2)
            seen = (await clients.agent.status())["tunnel"]["packets_in"] // 1_000
    # Another one does not notice.
    reader, writer = await clients.dial()
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(PATIENCE):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    clients.bounded(before, each=2 * MIB, connections=len(stalled))
    for _, writer in stalled:
        writer.transport.abort()
