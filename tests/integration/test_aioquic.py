"""What only aioquic shows of the real server process; test_conversations.py has what all stacks do."""

from __future__ import annotations

import pytest

from tests.integration.aioquic_peer import AioquicPeer
from tests.integration.conftest import StartServer
from tests.integration.packets import udp_packet
from tests.integration.peers import AGENT, CONNECTOR, registration
from tests.integration.server import Server
from tests.integration.site import free_port
from tests.integration.stacks import Aioquic

INNER = ("100.64.0.1", 5_000)
APPLICATION = ("10.0.0.5", 80)


async def test_handshake(server: Server) -> None:
    async with AioquicPeer.start(server.address, ca_file=server.ca_file) as peer:
        assert peer.alpn == "ztna-v1"
        assert peer.parameters["cid_length"] == 20
        assert peer.parameters["max_idle_timeout"] == 30.0
        assert peer.parameters["max_datagram_frame_size"] >= 1_309
        assert peer.parameters["max_data"] == 8_192, "a frame of signaling passes in several windows"
        await peer.ping()


@pytest.mark.parametrize("name", ["ztna-server", "localhost", None])
async def test_names_of_the_development_certificate(server: Server, name: str | None) -> None:
    async with AioquicPeer.start(server.address, ca_file=server.ca_file, server_name=name) as peer:
        await peer.observed()


async def test_any_name_may_be_asked_for(server: Server) -> None:
    """The server neither refuses nor selects on SNI."""
    async with AioquicPeer.start(server.address, server_name="somewhere.example") as peer:
        await peer.observed()


async def test_a_change_of_connection_id(server: Server) -> None:
    stack = Aioquic()
    async with stack.join(server, CONNECTOR, b"web") as connector, stack.join(server, AGENT, b"web") as agent:
        assert isinstance(agent, AioquicPeer)
        for turn in range(3):
            agent.change_connection_id()
            await agent.ping()
            packet = udp_packet(INNER, APPLICATION, bytes([turn]))
            await agent.send(packet)
            assert await connector.packet() == packet


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
