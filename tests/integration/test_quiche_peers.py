"""The clients in the field, as quiche 0.22 puts them on the wire, against the real server process."""

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
    quiche_program,
    registration,
    to_service,
)
from tests.integration.quiche_field import (
    APPLICATION,
    DUMMY,
    INNER,
    SERVICE,
    Field,
    ack,
    backend,
    exchange,
    field,
    nack,
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
    assert params["initial_max_stream_data_bidi_remote"] >= 65_536, "one frame of signalling"
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


@pytest.mark.parametrize("profile", PROFILES)
async def test_address_report(field: Field, profile: Profile) -> None:
    async with field.start(profile) as peer:
        await peer.connected()
        _, port = await peer.local()
        assert await peer.observed() == ("127.0.0.1", port)
        assert await peer.register(AGENT, SERVICE) == ack(SERVICE)
        assert peer.inbox.addresses.empty(), "reported once"


@pytest.mark.parametrize("profile", PROFILES)
async def test_address_report_over_ipv6(quiche_program: Path, start_server: StartServer, profile: Profile) -> None:
    server = await start_server("--client-auth", "optional", bind="::1")
    async with Field(quiche_program, server).start(profile) as peer:
        await peer.connected()
        _, port = await peer.local()
        assert await peer.observed() == ("::1", port)
        assert await peer.register(AGENT, SERVICE) == ack(SERVICE)


@pytest.mark.parametrize(("profile", "kind"), [("agent-core", AGENT), ("connector", CONNECTOR), ("test-client", AGENT)])
async def test_registration(field: Field, profile: Profile, kind: int) -> None:
    async with field.join(profile, kind) as peer:
        assert await peer.register(kind, SERVICE) == ack(SERVICE), "clients send it up to three times"
        assert await peer.register(kind, b"another") == ack(b"another")
        assert await peer.register(kind, b"") == bytes.fromhex("120000")
        await peer.send(registration(kind, SERVICE) + b"trailing")
        assert await peer.reply() == ack(SERVICE)
        assert await peer.register(kind, b"\xff\xfe") == bytes.fromhex("130100")
        longest = b"s" * 255
        assert await peer.register(kind, longest) == ack(longest)


async def test_malformed_datagrams_are_ignored(field: Field) -> None:
    async with field.start("test-client") as peer:
        await peer.connected()
        for data in (
            "10",
            "11",
            "1005aabb",
            "2f",
            "2f01",
            "2f09aabb",
            "01c0a801010001",
            "5a00000000",
            "00",
            "45",
            "ff" * 40,
        ):
            await peer.send(bytes.fromhex(data))
        assert await peer.register(AGENT, SERVICE) == ack(SERVICE)
        assert peer.inbox.replies.empty()
        assert peer.inbox.packets.empty()


async def test_client_certificate(quiche_program: Path, start_server: StartServer) -> None:
    """Only quic-test-client can present one; its rights are those of its names."""
    server = await start_server("--client-auth", "required")
    held = server.certificate(["agent.hj-6e7c.ztna"])
    async with QuichePeer.start(
        quiche_program, "test-client", server.address, ca_file=server.ca_file, certificate=held
    ) as peer:
        await peer.connected()
        await peer.observed()
        assert await peer.register(AGENT, SERVICE) == ack(SERVICE)
        assert await peer.register(AGENT, b"other") == nack(2, b"other")
        assert await peer.register(CONNECTOR, SERVICE) == nack(2, SERVICE)


@pytest.mark.parametrize("profile", PROFILES)
async def test_no_client_certificate_where_one_is_required(
    quiche_program: Path, start_server: StartServer, profile: Profile
) -> None:
    server = await start_server("--client-auth", "required")
    async with QuichePeer.start(quiche_program, profile, server.address, ca_file=server.ca_file) as peer:
        error = await peer.draining()
        assert (error["application"], error["code"]) == (False, CERTIFICATE_REQUIRED)
        assert peer.inbox.addresses.empty()


async def test_the_wrapper_is_removed_and_nothing_else(field: Field) -> None:
    async with field.pair() as (agent, connector):
        packet = udp_packet(INNER, APPLICATION, b"question")
        await agent.send(to_service(SERVICE, packet))
        assert await connector.packet() == packet
        answer = udp_packet(APPLICATION, INNER, b"answer")
        await connector.send(answer)
        assert await agent.packet() == answer


async def test_a_bare_packet_goes_to_the_registered_service(field: Field) -> None:
    async with field.pair("test-client") as (agent, connector):
        packet = udp_packet(INNER, APPLICATION, b"bare")
        await agent.send(packet)
        assert await connector.packet() == packet


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


async def test_order_within_a_flow(field: Field) -> None:
    async with field.pair() as (agent, connector):
        for number in range(64):
            await agent.send(to_service(SERVICE, udp_packet(INNER, APPLICATION, bytes([number]) * 100)))
        got = [read_udp(await connector.packet()).payload[0] for _ in range(64)]
        assert got == list(range(64))


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


@pytest.mark.parametrize("profile", PROFILES)
async def test_an_agent_behind_a_nat_that_rebinds(field: Field, profile: Profile, backend: Address) -> None:
    async with field.pair(profile) as (agent, connector):
        await connector.forward(backend)
        await exchange(agent, b"before", backend)
        for turn in range(2):
            _, port = await agent.rebind()
            await exchange(agent, f"after {turn}".encode(), backend)
            assert await agent.observed() == ("127.0.0.1", port)
        assert agent.inbox.addresses.empty(), "reported once for each change"


async def test_a_connector_behind_a_nat_that_rebinds(field: Field, backend: Address) -> None:
    async with field.pair() as (agent, connector):
        await connector.forward(backend)
        await exchange(agent, b"before", backend)
        _, port = await connector.rebind()
        await connector.ping()
        assert await connector.observed() == ("127.0.0.1", port)
        await exchange(agent, b"after", backend)


async def test_largest_datagram_as_the_first_packet(field: Field) -> None:
    """1350 - (1 + 20 + 4 + 16) - 9 bytes, towards the connector and back."""
    async with field.pair("test-client") as (agent, connector):
        there = sized_udp_packet(INNER, APPLICATION, 1_300)
        await agent.send(there)
        assert await connector.packet() == there
        back = sized_udp_packet(APPLICATION, INNER, 1_300)
        await connector.send(back)
        assert await agent.packet() == back


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


async def test_no_connector_is_answered(field: Field) -> None:
    async with field.join("agent-core", AGENT) as agent:
        packet = udp_packet(INNER, APPLICATION, b"anyone?")
        await agent.send(to_service(SERVICE, packet))
        answer = read_icmp(await agent.packet())
        assert (answer.kind, answer.code) == (3, 1), "host unreachable"
        assert answer.body[:28] == packet[:28]
