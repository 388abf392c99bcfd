"""UDP between local ports and applications, through a real relay process."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import cast

import pytest

from intermediate_server.client.service_address import service_addresses
from intermediate_server.engine import Command, Forward
from intermediate_server.testing import Agent
from intermediate_server.testing.plugin import Programs, StartConnector, StartRelay
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE, Server
from tests.integration.tunnels import TunnelEngine, backend, connected, until

Address = tuple[str, int]
Answer = Callable[[bytes], Iterable[bytes]]


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
async def app(answer: Answer = reversed_once, port: int = 0) -> AsyncIterator[App]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(lambda: App(answer), local_addr=("127.0.0.1", port))
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


@contextmanager
def closed_port() -> Iterator[Address]:
    """An address of this host that refuses, and that nobody else gets meanwhile."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        address: Address = taken.getsockname()
        # It hears itself alone, and the system refuses for it.
        taken.connect(address)
        yield address


def udp_forward(host: str = "127.0.0.1", port: int = 0, *, to: int = 0) -> Forward:
    """A local port of the service; ``to`` 1 makes it IPv6 inside the tunnel."""
    destination = str(service_addresses("dns")[to])
    return Forward(protocol="udp", bind=(host, port), service=b"dns", destination=(destination, 53))


async def through(
    tunnels: TunnelEngine, server: Server, *backends: Address, forwards: Iterable[Forward] = ()
) -> tuple[int, int, list[Address]]:
    """Local ports of an application: the tunnels of connector and agent, and the ports."""
    connector = await tunnels.open_backends([backend(*backends, service="dns", protocol="udp")])
    agent, ports = await tunnels.open_forwards(list(forwards) or [udp_forward()])
    await tunnels.attach(connector, await connected(tunnels, server, Role.CONNECTOR, "dns"))
    await tunnels.attach(agent, await connected(tunnels, server, Role.AGENT, "dns"), ["dns"])
    return connector, agent, ports


async def test_questions_and_answers(server: Server, tunnels: TunnelEngine) -> None:
    async with app() as echo:
        _, agent, ports = await through(tunnels, server, echo.address, forwards=[udp_forward(), udp_forward(to=1)])
        for port in ports:
            for _ in range(3):
                async with client(port) as asking:
                    for question in (b"first", b"second", b"x" * 1100):
                        assert await asking.ask(question) == question[::-1]
        assert tunnels.counters(agent)["udp_flows"] == 6


async def test_a_payload_of_any_size(server: Server, tunnels: TunnelEngine) -> None:
    """Around the largest packet that is carried whole, up to the largest there is."""
    async with app() as echo:
        connector, agent, ports = await through(
            tunnels, server, echo.address, forwards=[udp_forward(), udp_forward(to=1)]
        )
        for port in ports:
            async with client(port) as asking:
                for size in (1, *range(1150, 1450, 7), 1472, 4096, 9000, 65_507):
                    question = os.urandom(size)
                    assert await asking.ask(question) == question[::-1]
        for tunnel in (connector, agent):
            counters = tunnels.counters(tunnel)
            assert counters["fragment_bytes"] == 0
            assert {name: count for name, count in counters.items() if name.startswith("drop_") and count} in (
                {},
                # The answer to what makes the agent known to the relay.
                {"drop_protocol": counters["drop_protocol"]},
            )


async def test_large_packets_of_many_at_once(server: Server, tunnels: TunnelEngine) -> None:
    async with app() as echo:
        _, _, [port] = await through(tunnels, server, echo.address)

        async def converse() -> None:
            async with client(port) as asking:
                for _ in range(5):
                    question = os.urandom(9000)
                    assert await asking.ask(question) == question[::-1]

        await asyncio.gather(*(converse() for _ in range(10)))


async def test_a_flow_lasts_for_many_answers(server: Server, tunnels: TunnelEngine) -> None:
    """Each comes when the one before has been heard, so that the connector finds nothing to read in between."""
    async with app() as echo:
        connector, _, [port] = await through(tunnels, server, echo.address)
        async with client(port) as asking:
            for number in range(100):
                assert await asking.ask(b"<%d" % number) == (b"<%d" % number)[::-1]
        assert len(echo.peers) == 1, "from one port, whatever the flow"
        counters = tunnels.counters(connector)
        assert (counters["udp_opened"], counters["icmp_sent"]) == (1, 0)


async def test_one_question_may_have_many_answers(server: Server, tunnels: TunnelEngine) -> None:
    """As a stream of measurements has, some at once and some later."""
    async with app(lambda question: [b"%d" % number for number in range(int(question))]) as stream:
        connector, _, [port] = await through(tunnels, server, stream.address)
        async with client(port) as asking:
            for _ in range(3):
                asking.transport.sendto(b"50")
                assert [await asking.hear() for _ in range(50)] == [b"%d" % number for number in range(50)]
            # The application may also speak without being asked again.
            stream.transport.sendto(b"news", stream.peers[0])
            assert await asking.hear() == b"news"
        assert len(stream.peers) == 1
        assert tunnels.counters(connector)["udp_opened"] == 1


async def test_many_flows_at_once(server: Server, tunnels: TunnelEngine) -> None:
    async with app() as echo:
        connector, agent, [port] = await through(tunnels, server, echo.address)

        async def converse(number: int) -> None:
            async with client(port) as asking:
                for turn in range(5):
                    question = b"%d of %d" % (turn, number)
                    assert await asking.ask(question) == question[::-1]

        await asyncio.gather(*(converse(number) for number in range(200)))
        assert len(echo.peers) == 200
        for tunnel in (connector, agent):
            assert tunnels.counters(tunnel)["udp_opened"] == 200


async def test_the_first_packets_go_to_the_first_address_that_takes_them(server: Server, tunnels: TunnelEngine) -> None:
    with closed_port() as first, closed_port() as second:
        async with app() as echo:
            _, _, [port] = await through(tunnels, server, first, second, echo.address)
            for _ in range(3):
                async with client(port) as asking:
                    questions = [b"<%d" % number for number in range(5)]
                    for question in questions:
                        asking.transport.sendto(question)
                    assert sorted([await asking.hear() for _ in questions]) == sorted(q[::-1] for q in questions)
                    assert await asking.ask(b"last") == b"tsal"
            assert len(echo.peers) == 3


async def test_a_refused_packet_is_told_to_who_sent_it(server: Server, tunnels: TunnelEngine) -> None:
    """By the error that the application's own host would give (ICMP "port unreachable")."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close()
    except PermissionError:
        pytest.skip("it takes the right to raw sockets (CAP_NET_RAW)")
    with closed_port() as closed:
        hosts = {"127.0.0.1": "127.0.0.1", "127.0.0.2": "0.0.0.0", "127.0.0.3": "::", "::1": "::1"}
        forwards = [udp_forward(bind, to=number % 2) for number, bind in enumerate(hosts.values())]
        _, agent, ports = await through(tunnels, server, closed, forwards=forwards)
        for host, (_, port) in zip(hosts, ports, strict=True):
            async with client((host, port)) as asking, client((host, port)) as other:
                for question in (b"question", bytes(5000)):
                    with pytest.raises(ConnectionRefusedError):
                        await asking.ask(question)
                assert other.heard.empty()
        assert tunnels.counters(agent)["udp_refused"] == 2 * len(hosts)


async def test_a_port_refuses_for_a_while_where_nobody_can_be_told_alone(
    start_relay: StartRelay, start_connector: StartConnector, programs: Programs
) -> None:
    """An agent without CAP_NET_RAW: the port as a whole refuses, and takes packets again."""
    within = ("setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw") if os.geteuid() == 0 else ()
    if within and shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    relay = await start_relay()
    with closed_port() as closed:
        await start_connector(relay, {"dns": "udp://{}:{}".format(*closed)})
        agent = await programs.keep(Agent.begin(relay, [("udp", "dns")], within=within))
        host, _, port = agent.addresses[0].rpartition(":")
        async with client((host, int(port))) as asking:
            async with asyncio.timeout(PATIENCE):
                while asking.heard.empty():
                    asking.transport.sendto(b"question")
                    await asyncio.sleep(0.05)
            with pytest.raises(ConnectionRefusedError):
                await asking.hear()
    async with app(port=closed[1]), client((host, int(port))) as asking, asyncio.timeout(PATIENCE):
        while True:
            asking.transport.sendto(b"question")
            await asyncio.sleep(0.1)
            if not asking.heard.empty() and asking.heard.get_nowait() == b"noitseuq":
                return


async def test_answers_come_from_the_address_that_was_asked(server: Server, tunnels: TunnelEngine) -> None:
    async with app() as echo:
        forwards = [udp_forward("0.0.0.0"), udp_forward("::"), udp_forward("127.0.0.3")]
        _, _, ports = await through(tunnels, server, echo.address, forwards=forwards)
        asked = [(host, ports[0][1]) for host in ("127.0.0.1", "127.0.0.2", "127.9.9.9")]
        asked += [(host, ports[1][1]) for host in ("127.0.0.2", "::1")]
        asked.append(("127.0.0.3", ports[2][1]))
        loop = asyncio.get_running_loop()
        for address in asked:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as asking:
                asking.setblocking(False)
                async with asyncio.timeout(PATIENCE):
                    for size in (5, 5000):
                        question = os.urandom(size)
                        await loop.sock_sendto(asking, question, address)
                        answer, peer = await loop.sock_recvfrom(asking, 65_535)
                        assert (answer, peer[:2]) == (question[::-1], address)
        # To several addresses from one socket: each has a flow of its own.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setblocking(False)
            async with asyncio.timeout(PATIENCE):
                for address in asked[:3] * 2:
                    await loop.sock_sendto(asking, address[0].encode(), address)
                    answer, peer = await loop.sock_recvfrom(asking, 65_535)
                    assert (answer, peer) == (address[0].encode()[::-1], address)


async def test_a_port_refuses_while_its_service_cannot_be_reached(server: Server, tunnels: TunnelEngine) -> None:
    forwards, [(_, port)] = await tunnels.open_forwards([udp_forward("0.0.0.0")])
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
        connection = await connected(tunnels, server, Role.AGENT, "dns")
        await tunnels.attach(forwards, connection, ["dns"])
        assert refused(), "it has no connector"
        backends = await tunnels.open_backends([backend(("127.0.0.1", 9), service="dns", protocol="udp")])
        await tunnels.attach(backends, await connected(tunnels, server, Role.CONNECTOR, "dns"))
        await until(lambda: tunnels.connectors[forwards, "dns"])
        await until(lambda: not refused() and tunnels.counters(forwards)["udp_opened"] == 1)
        tunnels.submit(Command.SetTunnelServices(forwards, []))
        await until(refused)
        tunnels.submit(Command.SetTunnelServices(forwards, [b"dns"]))
        await until(lambda: not refused())
        await connection.close()
        await until(refused)
