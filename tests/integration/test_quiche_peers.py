"""What only the clients in the field do, as quiche 0.22 puts them on the wire; test_conversations.py has the rest."""

from __future__ import annotations

import asyncio
import contextlib
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from intermediate_server.client.service_address import service_addresses
from tests.integration.packets import Address, icmp_echo, read_icmp, read_udp, sized_udp_packet, udp_packet
from tests.integration.peers import (
    AGENT,
    CONNECTOR,
    Profile,
    QuichePeer,
    ack,
    quiche_program,
    to_service,
)
from tests.integration.quiche_field import (
    APPLICATION,
    DUMMY,
    INNER,
    SERVICE,
    Field,
    backend,
    exchange,
    field,
)

__all__ = ["backend", "field", "quiche_program"]

# The first test may have to build BoringSSL; every wait inside a test has its own, shorter limit.
pytestmark = pytest.mark.timeout(900)

PROFILES: tuple[Profile, ...] = get_args(Profile)
if TYPE_CHECKING:
    from tests.integration.quiche_field import StartServer

CERTIFICATE_REQUIRED = 0x0174
"""CRYPTO_ERROR with the TLS alert certificate_required (RFC 9001 section 4.8)."""


@pytest.mark.parametrize("profile", PROFILES)
async def test_handshake_and_server_parameters(field: Field, profile: Profile) -> None:
    async with field.start(profile) as peer:
        event = await peer.connected()
    params = event["server_params"]
    assert event["alpn"] == "ztna-v1"
    assert event["max_writable"] == (1_156 if profile == "agent-core" else 1_306)
    assert params["cid_length"] == 20
    assert params["max_idle_timeout"] == 30_000
    assert params["max_datagram_frame_size"] >= 1_309, "1306 bytes and the head of the frame"
    assert params["max_udp_payload_size"] >= 1_350
    assert params["active_connection_id_limit"] >= 2
    assert params["initial_max_streams_bidi"] >= 1, "signalling needs stream 0"
    assert params["initial_max_stream_data_bidi_remote"] == 8_192, "the largest frame of signalling passes in parts"
    assert params["disable_active_migration"] is False
    assert params["retried"] is True
    key = x509.load_der_x509_certificate(bytes.fromhex(event["certificate"])).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey), "the field offers no Ed25519"


async def test_without_retry(quiche_program: Path, start_server: StartServer) -> None:
    server = await start_server("--client-auth", "optional", "--disable-retry")
    async with Field(quiche_program, server).start("connector") as peer:
        assert (await peer.connected())["server_params"]["retried"] is False
        assert await peer.register(CONNECTOR, SERVICE) == ack(SERVICE)


@pytest.mark.parametrize("profile", PROFILES)
async def test_a_client_that_does_not_verify(field: Field, profile: Profile) -> None:
    async with QuichePeer.start(field.program, profile, field.server.address, verify=False) as peer:
        await peer.connected()
        await peer.observed()


async def test_verification_is_real(field: Field) -> None:
    """Without it the tests above would say nothing about names and chains."""
    async with QuichePeer.start(field.program, "agent-core", field.server.address) as peer:
        error = await peer.closed()
    assert error is not None
    assert (error["by"], error["application"]) == ("local", False)
    assert 0x0100 <= error["code"] < 0x0200, "a TLS alert"


async def test_an_address_beyond_the_pool_is_translated(field: Field) -> None:
    """That of quic-test-client, or one that a peer on the connector's side could have."""
    async with field.pair("test-client") as (agent, connector):
        for source in (("10.0.0.100", 12_345), APPLICATION, (service_addresses(SERVICE.decode())[0], 53)):
            inner = (str(source[0]), source[1])
            await agent.send(udp_packet(inner, APPLICATION, b"question"))
            question = read_udp(await connector.packet())
            assert ip_address(question.source[0]) in ip_network("100.124.0.0/14"), "the part that is shared"
            await connector.send(udp_packet(APPLICATION, question.source, b"answer"))
            answer = read_udp(await agent.packet())
            assert (answer.destination, answer.payload) == (inner, b"answer")


@pytest.mark.parametrize("inner_addresses", ["auto", "off"])
async def test_udp_to_an_application_beside_the_connector(
    quiche_program: Path, start_server: StartServer, backend: Address, inner_addresses: str
) -> None:
    """The connectors in the field answer with the application's address, mostly 127.0.0.1, as inner source."""
    server = await start_server("--client-auth", "optional", "--inner-addresses", inner_addresses)
    async with Field(quiche_program, server).pair() as (agent, connector):
        await connector.forward(backend)
        assert backend[0] == "127.0.0.1"
        for number in range(3):
            await exchange(agent, b"question %d" % number, backend)
        # Whatever stands for one host may answer, and nothing else.
        for source in ("0.0.0.0", "224.0.0.1", "255.255.255.255"):
            await connector.send(udp_packet((source, 53), INNER, b"stays out"))
        for source in ("169.254.169.254", "240.0.0.1", "192.168.1.5"):
            answer = udp_packet((source, 53), INNER, b"comes in")
            await connector.send(answer)
            assert await agent.packet() == answer
        # An agent's own packets are held to more.
        await agent.send(to_service(SERVICE, udp_packet(("127.0.0.1", 53), APPLICATION, b"forged")))
        await exchange(agent, b"last", backend)
        assert read_udp(await connector.packet()).payload == b"question 0"
        assert [read_udp(await connector.packet()).payload for _ in range(3)][-1] == b"last"


async def test_ping_through_the_relay(field: Field) -> None:
    async with field.pair() as (agent, connector):
        await connector.echo()
        await agent.send(to_service(SERVICE, icmp_echo(INNER[0], APPLICATION[0], 7, b"ping")))
        answer = read_icmp(await agent.packet())
        assert (answer.kind, answer.rest >> 16, answer.body) == (0, 7, b"ping")
        assert (answer.source, answer.destination) == (APPLICATION[0], INNER[0])


async def test_agents_with_the_same_inner_address_get_their_own_answers(field: Field, backend: Address) -> None:
    """Fault 1: 50 of 60 answers went to another agent."""
    async with field.join("connector", CONNECTOR) as connector, contextlib.AsyncExitStack() as stack:
        await connector.forward(backend)
        agents = [await stack.enter_async_context(field.join("agent-core", AGENT)) for _ in range(3)]
        for turn in range(10):
            await asyncio.gather(
                *(exchange(agent, f"{number} {turn}".encode(), backend) for number, agent in enumerate(agents))
            )
        # Each has had the last answer meant for it, so a stray one would have come before.
        assert all(agent.inbox.packets.empty() for agent in agents)
        sources = {read_udp(await connector.packet()).source for _ in range(30)}
        assert len({host for host, _ in sources}) == 3, "the application sees three hosts"


@pytest.mark.parametrize("size", [1_301, 1_306])
async def test_what_the_other_leg_cannot_carry_is_answered(field: Field, size: int) -> None:
    async with field.pair("test-client") as (agent, connector):
        packet = sized_udp_packet(INNER, APPLICATION, size)
        await agent.send(packet)
        answer = read_icmp(await agent.packet())
        assert (answer.kind, answer.code, answer.rest) == (3, 4, 1_300), "fragmentation needed, MTU 1300"
        assert (answer.source, answer.destination) == (DUMMY, INNER[0])
        assert answer.body[:28] == packet[:28]
        assert connector.inbox.packets.empty()
        fits = sized_udp_packet(INNER, APPLICATION, 1_300)
        await agent.send(fits)
        assert await connector.packet() == fits


async def test_too_large_from_the_connector_is_answered_too(field: Field) -> None:
    async with field.pair("test-client") as (agent, connector):
        await agent.send(udp_packet(INNER, APPLICATION, b"lease"))
        await connector.packet()
        packet = sized_udp_packet(APPLICATION, INNER, 1_306)
        await connector.send(packet)
        answer = read_icmp(await connector.packet())
        assert (answer.kind, answer.code, answer.rest) == (3, 4, 1_300)
        assert (answer.source, answer.destination) == (DUMMY, APPLICATION[0])


async def test_largest_datagram_of_the_agent_core(field: Field) -> None:
    async with field.pair() as (agent, connector):
        packet = sized_udp_packet(INNER, APPLICATION, 1_156 - 2 - len(SERVICE))
        wrapped = to_service(SERVICE, packet)
        assert len(wrapped) == 1_156
        await agent.send(wrapped)
        assert await connector.packet() == packet
        refused = await agent.try_send(wrapped + b"!")
        assert (refused.ok, refused.max_writable) == (False, 1_156)
        back = sized_udp_packet(APPLICATION, INNER, 1_300)
        await connector.send(back)
        assert await agent.packet() == back, "it takes more than it sends"
