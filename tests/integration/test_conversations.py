"""What every client may rely on, whatever its QUIC stack: the same conversations with three unrelated ones."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import get_args

import pytest

from intermediate_server.client import ClientEngine
from intermediate_server.errors import ConnectError
from tests.integration.aioquic_peer import AioquicPeer
from tests.integration.conftest import SharedServers, StartServer
from tests.integration.packets import Address, read_icmp, read_udp, sized_udp_packet, udp_packet
from tests.integration.peers import (
    AGENT,
    CONNECTOR,
    Ended,
    Profile,
    WirePeer,
    ack,
    nack,
    quiche_program,
    registration,
    to_service,
)
from tests.integration.server import Server
from tests.integration.stacks import Aioquic, Own, OwnPeer, Quiche, Stack

__all__ = ["quiche_program"]

# The first test may have to build BoringSSL; every wait inside a test has its own, shorter limit.
pytestmark = pytest.mark.timeout(900)

PROFILES: tuple[Profile, ...] = get_args(Profile)
FOREIGN = ("aioquic", *PROFILES)
STACKS = ("own", *FOREIGN)
APPLICATION = ("10.0.0.5", 53)
CERTIFICATE_REQUIRED = 0x0174
"""CRYPTO_ERROR with the TLS alert certificate_required (RFC 9001 section 4.8)."""


def stack_of(name: str, request: pytest.FixtureRequest, engine: ClientEngine) -> Stack:
    match name:
        case "own":
            return Own(engine)
        case "aioquic":
            return Aioquic()
        case _:
            (profile,) = (one for one in PROFILES if one == name)
            return Quiche(request.getfixturevalue("quiche_program"), profile)


@pytest.fixture(params=STACKS)
def stack(request: pytest.FixtureRequest, engine: ClientEngine) -> Stack:
    return stack_of(request.param, request, engine)


_hosts = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Talk:
    """A service and an inner address of one test, and clients that use them."""

    server: Server
    service: bytes
    inner: Address

    def packet(self, payload: bytes) -> bytes:
        return udp_packet(self.inner, APPLICATION, payload)

    def answer(self, payload: bytes) -> bytes:
        return udp_packet(APPLICATION, self.inner, payload)

    def agent(self, stack: Stack) -> contextlib.AbstractAsyncContextManager[WirePeer]:
        return stack.join(self.server, AGENT, self.service)

    def connector(self, stack: Stack) -> contextlib.AbstractAsyncContextManager[WirePeer]:
        return stack.for_connectors().join(self.server, CONNECTOR, self.service)

    @contextlib.asynccontextmanager
    async def pair(self, stack: Stack, other: Stack | None = None) -> AsyncIterator[tuple[WirePeer, WirePeer]]:
        """An agent and a connector; the latter of another stack if one is given."""
        async with self.connector(other or stack) as connector, self.agent(stack) as agent:
            yield agent, connector

    async def exchange(self, agent: WirePeer, connector: WirePeer, payload: bytes) -> None:
        """A packet there and one back, neither of them altered."""
        await agent.send(to_service(self.service, self.packet(payload)))
        assert await connector.packet() == self.packet(payload)
        await connector.send(self.answer(payload))
        assert await agent.packet() == self.answer(payload)


@pytest.fixture
def talk(server: Server, share_server: SharedServers) -> Talk:
    host = next(_hosts)
    return Talk(server, share_server.new_service(), (f"100.64.{host >> 8}.{host & 255}", 5_000))


@pytest.mark.parametrize("bind", ["127.0.0.1", "::1"])
async def test_address_report(stack: Stack, share_server: SharedServers, bind: str) -> None:
    server = share_server("--client-auth", "optional", bind=bind)
    async with stack.start(server) as peer:
        assert await peer.observed() == (bind, await peer.port())
        service = share_server.new_service()
        assert await peer.register(AGENT, service) == ack(service)
        assert peer.inbox.addresses.empty(), "reported once"


@pytest.mark.parametrize("kind", [AGENT, CONNECTOR])
async def test_registration(stack: Stack, talk: Talk, kind: int) -> None:
    async with stack.join(talk.server, kind, talk.service) as peer:
        assert await peer.register(kind, talk.service) == ack(talk.service), "clients send it up to three times"
        for service in (b"another", b"", "grüße".encode(), b"s" * 255):
            assert await peer.register(kind, service) == ack(service)
        if not isinstance(peer, OwnPeer):
            # The client library sends no such thing.
            await peer.send(registration(kind, talk.service) + b"trailing")
            assert await peer.reply() == ack(talk.service)
            for service in (b"\xff\xfe", b"\xc3"):
                assert await peer.register(kind, service) == bytes.fromhex("130100")
        assert peer.inbox.replies.empty()


MALFORMED = (
    *("10", "11", "11ff", "1005aabb", "2f", "2f01", "2f037765", "2f09aabb", "01c0a801010001", "01" * 7, "5a" * 9),
    *("5a00000000", "00", "45", "45" * 19, "ff" * 40, "ff" * 60),
)


async def test_malformed_datagrams_are_ignored(stack: Stack, talk: Talk) -> None:
    async with talk.connector(stack) as connector, stack.start(talk.server) as agent:
        for _ in range(2):
            # Before and after its registration.
            for data in MALFORMED:
                await agent.send(bytes.fromhex(data))
            assert await agent.register(AGENT, talk.service) == ack(talk.service)
            assert agent.inbox.replies.empty()
            assert agent.inbox.packets.empty()
        await talk.exchange(agent, connector, b"still here")


@pytest.mark.parametrize("name", ["own", "aioquic", "test-client"])
async def test_client_certificate(
    request: pytest.FixtureRequest, engine: ClientEngine, share_server: SharedServers, name: str
) -> None:
    """An agent's certificate opens its service as an agent, and nothing else."""
    server = share_server("--client-auth", "required")
    stack = stack_of(name, request, engine)
    async with stack.start(server, certificate=server.certificate([f"agent.{name}.ztna"])) as peer:
        await peer.observed()
        assert await peer.register(AGENT, name.encode()) == ack(name.encode())
        assert await peer.register(AGENT, b"other") == nack(2, b"other")
        assert await peer.register(CONNECTOR, name.encode()) == nack(2, name.encode())


@pytest.mark.parametrize("name", FOREIGN)
async def test_no_client_certificate_where_one_is_required(
    request: pytest.FixtureRequest, engine: ClientEngine, share_server: SharedServers, name: str
) -> None:
    server = share_server("--client-auth", "required")
    async with stack_of(name, request, engine).start(server) as peer:
        # TLS 1.3: the client's side of the handshake is complete before the server has seen its answer.
        ended = await peer.ended()
        assert (ended.application, ended.code) == (False, CERTIFICATE_REQUIRED)
        assert peer.inbox.addresses.empty()
        assert peer.inbox.replies.empty()


@pytest.mark.parametrize("other", ["own", "aioquic", "connector"])
async def test_relay_both_ways(
    request: pytest.FixtureRequest, engine: ClientEngine, stack: Stack, talk: Talk, other: str
) -> None:
    async with talk.pair(stack, stack_of(other, request, engine)) as (agent, connector):
        # With and without the name of the service: the wrapper is removed and nothing else.
        await talk.exchange(agent, connector, b"question")
        await agent.send(talk.packet(b"bare"))
        assert await connector.packet() == talk.packet(b"bare")
        await connector.send(talk.answer(b"answer"))
        assert await agent.packet() == talk.answer(b"answer")


async def test_agents_with_one_inner_address_get_their_own_answers(stack: Stack, talk: Talk) -> None:
    async with talk.connector(stack) as connector, contextlib.AsyncExitStack() as agents:
        all_of_them = [await agents.enter_async_context(talk.agent(stack)) for _ in range(3)]
        seen = []
        for number, agent in enumerate(all_of_them):
            await agent.send(to_service(talk.service, talk.packet(bytes([number]))))
            seen.append(read_udp(await connector.packet()))
            assert seen[-1].payload == bytes([number])
        assert len({one.source for one in seen}) == 3
        # Answered in the other order, so that "the last one that spoke" would be wrong.
        for one in reversed(seen):
            await connector.send(udp_packet(APPLICATION, one.source, one.payload))
        for number, agent in enumerate(all_of_them):
            answer = read_udp(await agent.packet())
            assert (answer.source, answer.destination, answer.payload) == (APPLICATION, talk.inner, bytes([number]))
            assert agent.inbox.packets.empty()


async def test_order_within_a_flow(stack: Stack, talk: Talk) -> None:
    async with talk.pair(stack) as (agent, connector):
        await agent.send_all([to_service(talk.service, talk.packet(bytes([n]) * 100)) for n in range(200)])
        assert [read_udp(await connector.packet()).payload[0] for _ in range(200)] == list(range(200))


async def test_the_largest_packet_passes_both_ways(stack: Stack, talk: Talk) -> None:
    async with talk.pair(stack) as (agent, connector):
        # 1350 - (1 + 20 + 4 + 16) - 9 bytes is what fits into a packet to any client in the field.
        size = min(1_300, await agent.largest())
        await agent.send(there := sized_udp_packet(talk.inner, APPLICATION, size))
        assert await connector.packet() == there
        await connector.send(back := sized_udp_packet(APPLICATION, talk.inner, min(1_300, await connector.largest())))
        assert await agent.packet() == back


async def test_no_connector_is_answered(stack: Stack, talk: Talk) -> None:
    async with talk.agent(stack) as agent:
        packet = talk.packet(b"anyone?")
        for sent in (to_service(talk.service, packet), packet):
            await agent.send(sent)
            answer = read_icmp(await agent.packet())
            assert (answer.kind, answer.code) == (3, 1), "host unreachable"
            assert answer.body[:28] == packet[:28]


async def test_what_is_not_registered_is_answered(stack: Stack, talk: Talk) -> None:
    async with talk.connector(stack) as connector, stack.start(talk.server) as stranger:
        packet = talk.packet(b"no")
        for sent in (packet, to_service(talk.service, packet)):
            await stranger.send(sent)
            answer = read_icmp(await stranger.packet())
            assert (answer.kind, answer.code) == (3, 13), "administratively prohibited"
            assert answer.body[:28] == packet[:28]
        assert await stranger.register(AGENT, talk.service) == ack(talk.service)
        await talk.exchange(stranger, connector, b"yes")


async def test_reconnecting(stack: Stack, talk: Talk) -> None:
    """One that comes back with the same inner address gets what is for it, and nothing that is for the one before."""
    async with talk.connector(stack) as connector:
        for turn in range(3):
            async with talk.agent(stack) as agent:
                await agent.send(talk.packet(bytes([turn])))
                question = read_udp(await connector.packet())
                assert question.payload == bytes([turn])
                await connector.send(udp_packet(APPLICATION, question.source, question.payload))
                answer = read_udp(await agent.packet())
                assert (answer.destination, answer.payload) == (talk.inner, bytes([turn]))
                assert agent.inbox.packets.empty()


async def test_a_nat_that_rebinds(stack: Stack, talk: Talk) -> None:
    async with talk.pair(stack) as (agent, connector):
        await talk.exchange(agent, connector, b"before")
        for turn in range(2):
            for peer in (agent, connector):
                _, port = await peer.rebind()
                if peer is connector:
                    # Nothing comes to it before it has sent something.
                    assert await peer.register(CONNECTOR, talk.service) == ack(talk.service)
                await talk.exchange(agent, connector, b"after %d" % turn)
                assert await peer.observed() == ("127.0.0.1", port)
                assert peer.inbox.addresses.empty(), "reported once for each change"


async def test_another_protocol_is_refused(server: Server, engine: ClientEngine) -> None:
    with pytest.raises(ConnectionError):
        async with AioquicPeer.start(server.address, alpn="h3"):
            pass
    with pytest.raises(ConnectError):
        async with OwnPeer.start(engine, server, alpn="h3"):
            pass
    async with AioquicPeer.start(server.address) as peer:
        await peer.observed()


@pytest.mark.parametrize("flags", [[], ["--disable-retry"]])
async def test_shutdown_says_so(
    request: pytest.FixtureRequest, engine: ClientEngine, start_server: StartServer, flags: list[str]
) -> None:
    server = await start_server("--client-auth", "optional", *flags)
    async with contextlib.AsyncExitStack() as clients:
        peers = [
            await clients.enter_async_context(stack_of(name, request, engine).join(server, AGENT, b"web"))
            for name in STACKS
        ]
        assert await server.terminate() == 0
        for peer in peers:
            assert await peer.ended() == Ended(True, 0, "server shutting down")
