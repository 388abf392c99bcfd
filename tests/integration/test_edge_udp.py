"""UDP between local ports and applications, through a real relay process."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from intermediate_server.client.virtual import virtual_addresses
from intermediate_server.engine import Command, Forward
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE, Server, StartServer
from tests.integration.edges import EdgeEngine, backend, connected, until

Address = tuple[str, int]
Answer = Callable[[bytes], Iterable[bytes]]


@pytest.fixture
async def edges() -> AsyncIterator[EdgeEngine]:
    async with EdgeEngine() as engine:
        yield engine


class App(asyncio.DatagramProtocol):
    """An application that gives some answers to each question."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.peers: list[Address] = []
        """Who has asked, in the order of their first question."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)
        self.address: Address = self.transport.get_extra_info("sockname")[:2]

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if addr not in self.peers:
            self.peers.append(addr)
        for answer in self.answer(data):
            self.transport.sendto(answer, addr)


def reversed_once(data: bytes) -> Iterable[bytes]:
    return (data[::-1],)


@asynccontextmanager
async def app(answer: Answer = reversed_once, host: str = "127.0.0.1") -> AsyncIterator[App]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(lambda: App(answer), local_addr=(host, 0))
    try:
        yield protocol
    finally:
        transport.close()


class Client(asyncio.DatagramProtocol):
    """A program with a socket of its own to one local port."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[bytes | Exception] = asyncio.Queue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.heard.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        self.heard.put_nowait(exc)

    async def hear(self) -> bytes:
        """The next answer. Raises what the system says in its place."""
        async with asyncio.timeout(PATIENCE):
            heard = await self.heard.get()
        if isinstance(heard, Exception):
            raise heard
        return heard

    async def ask(self, question: bytes) -> bytes:
        self.transport.sendto(question)
        return await self.hear()


@asynccontextmanager
async def client(port: Address) -> AsyncIterator[Client]:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(Client, remote_addr=port)
    try:
        yield protocol
    finally:
        transport.close()


def udp_forward(host: str = "127.0.0.1", port: int = 0, *, to: int = 0) -> Forward:
    """A local port of the service; ``to`` 1 makes it IPv6 inside the tunnel."""
    virtual = str(virtual_addresses("dns")[to])
    return Forward(protocol="udp", bind=(host, port), service=b"dns", destination=(virtual, 53))


async def through(
    edges: EdgeEngine, server: Server, *backends: Address, forwards: Iterable[Forward] = ()
) -> tuple[int, int, list[Address]]:
    """Local ports of an application: the edges of connector and agent, and the ports."""
    connector = await edges.open_backends([backend(*backends, service="dns", protocol="udp")])
    agent, ports = await edges.open_forwards(list(forwards) or [udp_forward()])
    await edges.attach(connector, await connected(edges, server, Role.CONNECTOR, "dns"))
    await edges.attach(agent, await connected(edges, server, Role.AGENT, "dns"), ["dns"])
    return connector, agent, ports


async def test_questions_and_answers(start_server: StartServer, edges: EdgeEngine) -> None:
    server = await start_server("--client-auth", "off")
    async with app() as echo:
        _, agent, ports = await through(edges, server, echo.address, forwards=[udp_forward(), udp_forward(to=1)])
        for port in ports:
            for _ in range(3):
                async with client(port) as asking:
                    for question in (b"first", b"second", b"x" * 1100):
                        assert await asking.ask(question) == question[::-1]
        assert edges.counters(agent)["udp_flows"] == 6


async def test_a_payload_of_any_size(start_server: StartServer, edges: EdgeEngine) -> None:
    """Around the largest packet that is carried whole, up to the largest there is."""
    server = await start_server("--client-auth", "off")
    async with app() as echo:
        connector, agent, ports = await through(
            edges, server, echo.address, forwards=[udp_forward(), udp_forward(to=1)]
        )
        for port in ports:
            async with client(port) as asking:
                for size in (1, *range(1150, 1450, 7), 1472, 4096, 9000, 65_507):
                    question = os.urandom(size)
                    assert await asking.ask(question) == question[::-1]
        for edge in (connector, agent):
            counters = edges.counters(edge)
            assert counters["fragment_bytes"] == 0
            assert {name: count for name, count in counters.items() if name.startswith("drop_") and count} in (
                {},
                # The answer to what makes the agent known to the relay.
                {"drop_protocol": counters["drop_protocol"]},
            )


async def test_large_packets_of_many_at_once(start_server: StartServer, edges: EdgeEngine) -> None:
    server = await start_server("--client-auth", "off")
    async with app() as echo:
        _, _, [port] = await through(edges, server, echo.address)

        async def converse() -> None:
            async with client(port) as asking:
                for _ in range(5):
                    question = os.urandom(9000)
                    assert await asking.ask(question) == question[::-1]

        await asyncio.gather(*(converse() for _ in range(10)))


async def test_a_flow_lasts_for_many_answers(start_server: StartServer, edges: EdgeEngine) -> None:
    """Each comes when the one before has been heard, so that the connector finds nothing to read in between."""
    server = await start_server("--client-auth", "off")
    async with app() as echo:
        connector, _, [port] = await through(edges, server, echo.address)
        async with client(port) as asking:
            for number in range(100):
                assert await asking.ask(b"<%d" % number) == (b"<%d" % number)[::-1]
        assert len(echo.peers) == 1, "from one port, whatever the flow"
        counters = edges.counters(connector)
        assert (counters["udp_opened"], counters["icmp_sent"]) == (1, 0)


async def test_one_question_may_have_many_answers(start_server: StartServer, edges: EdgeEngine) -> None:
    """As a stream of measurements has, some at once and some later."""
    server = await start_server("--client-auth", "off")
    async with app(lambda question: [b"%d" % number for number in range(int(question))]) as stream:
        connector, _, [port] = await through(edges, server, stream.address)
        async with client(port) as asking:
            for _ in range(3):
                asking.transport.sendto(b"50")
                assert [await asking.hear() for _ in range(50)] == [b"%d" % number for number in range(50)]
            # The application may also speak without being asked again.
            stream.transport.sendto(b"news", stream.peers[0])
            assert await asking.hear() == b"news"
        assert len(stream.peers) == 1
        assert edges.counters(connector)["udp_opened"] == 1


async def test_many_flows_at_once(start_server: StartServer, edges: EdgeEngine) -> None:
    server = await start_server("--client-auth", "off")
    async with app() as echo:
        connector, agent, [port] = await through(edges, server, echo.address)

        async def converse(number: int) -> None:
            async with client(port) as asking:
                for turn in range(5):
                    question = b"%d of %d" % (turn, number)
                    assert await asking.ask(question) == question[::-1]

        await asyncio.gather(*(converse(number) for number in range(200)))
        assert len(echo.peers) == 200
        for edge in (connector, agent):
            assert edges.counters(edge)["udp_opened"] == 200


async def test_a_port_refuses_while_its_service_cannot_be_reached(start_server: StartServer, edges: EdgeEngine) -> None:
    server = await start_server("--client-auth", "off")
    forwards, [(_, port)] = await edges.open_forwards([udp_forward("0.0.0.0")])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        asking.connect(("127.0.0.1", port))

        def refused() -> bool:
            try:
                asking.send(b"question")
                asking.recv(100)
            except BlockingIOError:
                return False
            except ConnectionRefusedError:
                return True
            return False

        await until(refused)
        connection = await connected(edges, server, Role.AGENT, "dns")
        await edges.attach(forwards, connection, ["dns"])
        assert refused(), "it has no connector"
        backends = await edges.open_backends([backend(("127.0.0.1", 9), service="dns", protocol="udp")])
        await edges.attach(backends, await connected(edges, server, Role.CONNECTOR, "dns"))
        await until(lambda: edges.connectors[forwards, "dns"])
        await until(lambda: not refused() and edges.counters(forwards)["udp_opened"] == 1)
        edges.submit(Command.SetEdgeServices(forwards, []))
        await until(refused)
        edges.submit(Command.SetEdgeServices(forwards, [b"dns"]))
        await until(lambda: not refused())
        await connection.close()
        await until(refused)
