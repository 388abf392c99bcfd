"""aioquic as an independent client against the real server process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from tests.integration.aioquic_peer import AioquicPeer
from tests.integration.packets import read_icmp, read_udp, sized_udp_packet, udp_packet
from tests.integration.peers import AGENT, CONNECTOR, registration, to_service
from tests.integration.site import free_port

if TYPE_CHECKING:
    from tests.integration.conftest import Server

    StartServer = Callable[..., Awaitable[Server]]

SERVICE = b"web"
INNER = ("100.64.0.1", 5_000)
APPLICATION = ("10.0.0.5", 80)


@pytest.fixture
async def server(start_server: StartServer) -> Server:
    return await start_server("--client-auth", "optional")


def ack(service: bytes) -> bytes:
    return bytes([0x12, 0x00, len(service)]) + service


@contextlib.asynccontextmanager
async def join(server: Server, kind: int, service: bytes = SERVICE) -> AsyncIterator[AioquicPeer]:
    """A client that has its address report and its registration."""
    async with AioquicPeer.start(server.address, ca_file=server.ca_file) as peer:
        await peer.observed()
        assert await peer.register(kind, service) == ack(service)
        yield peer


async def test_handshake(server: Server) -> None:
    async with AioquicPeer.start(server.address, ca_file=server.ca_file) as peer:
        assert peer.alpn == "ztna-v1"
        assert peer.parameters["cid_length"] == 20
        assert peer.parameters["max_idle_timeout"] == 30.0
        assert peer.parameters["max_datagram_frame_size"] >= 1_309
        assert peer.parameters["max_data"] == 65_536, "one frame of signaling, which nobody reads"
        await peer.ping()


@pytest.mark.parametrize("name", ["ztna-server", "localhost", None])
async def test_names_of_the_development_certificate(server: Server, name: str | None) -> None:
    async with AioquicPeer.start(server.address, ca_file=server.ca_file, server_name=name) as peer:
        await peer.observed()


async def test_any_name_may_be_asked_for(server: Server) -> None:
    """The server neither refuses nor selects on SNI."""
    async with AioquicPeer.start(server.address, server_name="somewhere.example") as peer:
        await peer.observed()


async def test_another_protocol_is_refused(server: Server) -> None:
    with pytest.raises(ConnectionError):
        async with AioquicPeer.start(server.address, alpn="h3"):
            pass
    async with AioquicPeer.start(server.address) as peer:
        await peer.observed()


async def test_address_report(server: Server) -> None:
    async with AioquicPeer.start(server.address) as peer:
        assert await peer.observed() == peer.local


async def test_address_report_over_ipv6(start_server: StartServer) -> None:
    server = await start_server("--client-auth", "optional", bind="::1")
    async with AioquicPeer.start(server.address, ca_file=server.ca_file) as peer:
        assert await peer.observed() == peer.local


async def test_registration(server: Server) -> None:
    async with join(server, AGENT) as peer:
        assert await peer.register(AGENT, SERVICE) == ack(SERVICE)
        assert await peer.register(AGENT, "grüße".encode()) == ack("grüße".encode())
        await peer.send(registration(AGENT, SERVICE) + b"trailing")
        assert await peer.reply() == ack(SERVICE)
        assert await peer.register(AGENT, b"\xc3") == bytes.fromhex("130100")


async def test_relay_both_ways(server: Server) -> None:
    async with join(server, CONNECTOR) as connector, join(server, AGENT) as agent:
        for wrapped in (True, False):
            packet = udp_packet(INNER, APPLICATION, b"question")
            await agent.send(to_service(SERVICE, packet) if wrapped else packet)
            assert await connector.packet() == packet
            answer = udp_packet(APPLICATION, INNER, b"answer")
            await connector.send(answer)
            assert await agent.packet() == answer


async def test_colliding_agents(server: Server) -> None:
    async with (
        join(server, CONNECTOR) as connector,
        join(server, AGENT) as first,
        join(server, AGENT) as second,
    ):
        agents = (first, second)
        seen = []
        for number, agent in enumerate(agents):
            await agent.send(to_service(SERVICE, udp_packet(INNER, APPLICATION, bytes([number]))))
            seen.append(read_udp(await connector.packet()))
        assert seen[0].source != seen[1].source
        # Answered in the other order, so that "the last one that spoke" would be wrong.
        for number in (1, 0):
            await connector.send(udp_packet(APPLICATION, seen[number].source, bytes([number])))
        for number, agent in enumerate(agents):
            answer = read_udp(await agent.packet())
            assert (answer.destination, answer.payload) == (INNER, bytes([number]))
            assert agent.inbox.packets.empty()


async def test_a_change_of_connection_id(server: Server) -> None:
    async with join(server, CONNECTOR) as connector, join(server, AGENT) as agent:
        for turn in range(3):
            agent.change_connection_id()
            await agent.ping()
            packet = udp_packet(INNER, APPLICATION, bytes([turn]))
            await agent.send(packet)
            assert await connector.packet() == packet


async def test_a_large_packet_to_a_client_with_no_limit_of_its_own(server: Server) -> None:
    async with join(server, CONNECTOR) as connector, join(server, AGENT) as agent:
        await agent.send(udp_packet(INNER, APPLICATION, b"lease"))
        await connector.packet()
        packet = sized_udp_packet(APPLICATION, INNER, 1_100)
        await connector.send(packet)
        assert await agent.packet() == packet


async def test_no_connector_is_answered(server: Server) -> None:
    async with join(server, AGENT) as agent:
        packet = udp_packet(INNER, APPLICATION, b"anyone?")
        await agent.send(to_service(SERVICE, packet))
        answer = read_icmp(await agent.packet())
        assert (answer.kind, answer.code, answer.body[:28]) == (3, 1, packet[:28])


async def test_client_certificates(start_server: StartServer) -> None:
    """Required: an agent's certificate opens its service as an agent, and nothing else."""
    server = await start_server("--client-auth", "required")
    held = server.certificate(["agent.web.ztna"])
    async with AioquicPeer.start(server.address, ca_file=server.ca_file, certificate=held) as peer:
        await peer.observed()
        assert await peer.register(AGENT, SERVICE) == ack(SERVICE)
        assert await peer.register(AGENT, b"other") == b"\x13\x02\x05other"
        assert await peer.register(CONNECTOR, SERVICE) == b"\x13\x02\x03web"


async def test_no_certificate_where_one_is_required(start_server: StartServer) -> None:
    """Fault 11: what came beside the last flight of the handshake was taken before its end took effect."""
    server = await start_server("--client-auth", "required", "--metrics-port", str(free_port()))
    first = [registration(AGENT, b"web"), registration(CONNECTOR, b"web"), udp_packet(INNER, APPLICATION, b"early")]
    async with AioquicPeer.start(server.address, ca_file=server.ca_file, first=first) as peer:
        # TLS 1.3: the client's side of the handshake is complete before the server has seen its answer.
        event = await peer.terminated()
        assert event.error_code == 0x0174, "CRYPTO_ERROR, certificate_required"
        assert peer.inbox.addresses.empty()
        assert peer.inbox.replies.empty()
    assert await server.metric("ztna_registrations_total") == 0
    assert await server.metric("ztna_registration_rejections_total") == 0


async def test_shutdown_says_so(server: Server) -> None:
    async with join(server, AGENT) as peer:
        await server.terminate()
        event = await peer.terminated()
        assert (event.error_code, event.frame_type, event.reason_phrase) == (0, None, "server shutting down")
