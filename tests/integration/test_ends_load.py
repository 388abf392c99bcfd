"""Agent and connector without root under many connections: nothing is lost, and nothing grows without bound."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest

from intermediate_server.testing import Agent, Connector, Program
from intermediate_server.testing.plugin import StartAgent, StartApplication, StartConnector, StartRelay
from intermediate_server.testing.programs import PATIENCE

CONNECTIONS = 500
MIB = 1 << 20


def resident(*programs: Program) -> int:
    return sum(psutil.Process(program.process.pid).memory_info().rss for program in programs)


def open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4 * CONNECTIONS:
        pytest.skip(f"only {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * CONNECTIONS), hard))


@asynccontextmanager
async def ends(
    start_relay: StartRelay,
    start_application: StartApplication,
    start_connector: StartConnector,
    start_agent: StartAgent,
    kind: str,
) -> AsyncIterator[tuple[Agent, Connector]]:
    open_files()
    relay = await start_relay()
    application = await start_application(kind)
    connector = await start_connector(relay, {"web": "tcp://{}:{}".format(*application.address)})
    yield await start_agent(relay, [("tcp", "web")]), connector


async def dial(agent: Agent) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = agent.addresses[0].rpartition(":")
    return await asyncio.open_connection(host, int(port))


@pytest.mark.timeout(300)
async def test_five_hundred_connections_at_once(
    start_relay: StartRelay,
    start_application: StartApplication,
    start_connector: StartConnector,
    start_agent: StartAgent,
) -> None:
    async with ends(start_relay, start_application, start_connector, start_agent, "tcp-echo") as (agent, connector):
        all_open = asyncio.Barrier(CONNECTIONS)

        async def one(number: int) -> None:
            reader, writer = await dial(agent)
            sent = number.to_bytes(2) * 4_096
            writer.write(sent)
            assert await reader.readexactly(len(sent)) == sent
            # Nobody ends before everybody has been served: they are open at once.
            await all_open.wait()
            writer.write_eof()
            assert await reader.read() == b"", "the end comes back too"
            writer.close()

        async with asyncio.timeout(200):
            await asyncio.gather(*(one(number) for number in range(CONNECTIONS)))
        for end in (agent, connector):
            async with asyncio.timeout(PATIENCE):
                while (await end.status())["edge"]["tcp_flows"] > 0:  # noqa: ASYNC110  another process decides
                    await asyncio.sleep(0.05)


@pytest.mark.timeout(300)
async def test_readers_that_stop_cost_a_bounded_memory(
    start_relay: StartRelay,
    start_application: StartApplication,
    start_connector: StartConnector,
    start_agent: StartAgent,
) -> None:
    async with ends(start_relay, start_application, start_connector, start_agent, "http") as (agent, connector):
        before = resident(agent, connector)
        request = f"GET /bytes/{100 * MIB} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        stalled = []
        for _ in range(CONNECTIONS // 5):
            reader, writer = await dial(agent)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(request)
            stalled.append((reader, writer))
        # They ask for ten gigabytes. All who hold them back fill up, and then nothing moves any more.
        async with asyncio.timeout(120):
            moved, seen = -1, 0
            while moved != seen:
                moved = seen
                await asyncio.sleep(2)
                seen = (await agent.status())["edge"]["packets_in"] // 1_000
        # Another one does not notice.
        reader, writer = await dial(agent)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        grown = resident(agent, connector) - before
        assert grown < len(stalled) * 2 * MIB, f"{grown / MIB:.0f} MiB for {len(stalled)} connections"
        for _, writer in stalled:
            writer.transport.abort()
