"""Faults that servers of this kind had, each shown not to be one here; the others are named where they are tested.

What packets and idle connections cost, faults 6 and 17, is for the benchmark to tell.
"""

from __future__ import annotations

import asyncio
import signal

import pytest
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, StreamDataReceived

from intermediate_server.client import ClientEngine
from intermediate_server.errors import ConnectError
from intermediate_server.types import Address, Role
from intermediate_server.wire import signaling
from tests.integration.conftest import PATIENCE, StartServer
from tests.integration.packets import read_udp, udp_packet
from tests.integration.plain_client import Client, udp
from tests.integration.relaying import APPLICATION, INNER, dial, join, received, with_metrics

CANDIDATE = signaling.Candidate(
    signaling.CandidateKind.HOST, Address.of(("192.0.2.9", 50_000)), 1, "host_192.0.2.9", None
)


async def test_nobody_can_signal_for_another(start_server: StartServer, engine: ClientEngine) -> None:
    """Fault 3: any client could offer, answer and report results in any session."""
    server = await start_server(*with_metrics())
    connector = await join(engine, server, Role.CONNECTOR)
    agent = await join(engine, server, Role.AGENT)
    async with udp(server) as sock:
        stranger = Client(sock, server)
        await stranger.connected()
        messages: list[signaling.Message] = [
            signaling.CandidateOffer(42, "web", (CANDIDATE,)),
            signaling.CandidateAnswer(42, (CANDIDATE,)),
            signaling.PunchingResult(42, True, CANDIDATE.address),
            signaling.SignalingError(42, 6, "rejected"),
        ]
        for message in messages:
            stranger.quic.send_stream_data(0, signaling.frame(signaling.encode(message)))
        stranger.quic.send_stream_data(4, b"\xff" * 200_000)
        stranger.quic.send_ping(1)
        await stranger.until(lambda: any(getattr(event, "uid", 0) == 1 for event in stranger.events))
        packet = udp_packet(INNER, APPLICATION, b"the first that the connector hears")
        agent.send(packet)
        assert await received(connector) == packet
        connector.send(udp_packet(APPLICATION, INNER, b"the first that the agent hears"))
        assert read_udp(await received(agent)).payload == b"the first that the agent hears"
        assert not stranger.saw(StreamDataReceived)
        assert not stranger.saw(ConnectionTerminated)
    assert await server.metric("ztna_signaling_sessions_total") == 0


async def test_an_anonymous_client_cannot_take_a_proven_connectors_service(
    start_server: StartServer, engine: ClientEngine
) -> None:
    """Fault 4: whoever registered last had the service."""
    server = await start_server("--client-auth", "optional")
    proven = await join(engine, server, Role.CONNECTOR, cert=server.certificate(["connector.web.ztna"]))
    await join(engine, server, Role.CONNECTOR)
    agent = await join(engine, server, Role.AGENT)
    packet = udp_packet(INNER, APPLICATION, b"for the proven one")
    agent.send(packet)
    assert read_udp(await received(proven)).payload == b"for the proven one"


async def test_a_scrape_may_come_in_pieces(start_server: StartServer) -> None:
    """Fault 5: a request was read once, without waiting for the rest."""
    server = await start_server(*with_metrics())
    line = await server.wait_log("Admin listening on")
    reader, writer = await asyncio.open_connection(str(line["host"]), int(line["port"]))
    for byte in b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n":
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"ztna_active_connections 0.0" in answer


async def test_a_burst_is_not_lost(start_server: StartServer, engine: ClientEngine) -> None:
    """Fault 7: a packet for each system call and small buffers lost up to 70 % of 800 packets of 1000 bytes."""
    # The connector's queue holds the burst whole: it is filled faster than a busy machine lets the connector read.
    server = await start_server("--client-auth", "optional", "--send-queue-bytes", "1MiB")
    connector = await join(engine, server, Role.CONNECTOR)
    agent = await join(engine, server, Role.AGENT)
    agent.send_many([udp_packet(INNER, APPLICATION, b"%04d" % number + bytes(968)) for number in range(800)])
    got = [int(read_udp(await received(connector)).payload[:4]) for _ in range(800)]
    assert got == list(range(800))


async def test_a_repeated_first_packet_makes_one_connection(start_server: StartServer) -> None:
    """Fault 14: without Retry, each copy of a client's Initial became another connection."""
    server = await start_server(*with_metrics(), "--disable-retry")
    async with udp(server) as sock:
        client = Client(sock, server)
        first = client.packets()
        for _ in range(20):
            client.send(first)
        await client.connected()
        client.send(first)
        client.quic.send_ping(1)
        await client.until(lambda: any(getattr(event, "uid", 0) == 1 for event in client.events))
    assert await server.metric('ztna_connections_total{stage="accepted"}') == 1
    assert await server.metric("ztna_active_connections") == 1


async def test_a_retry_token_is_good_once_and_from_its_own_address(start_server: StartServer) -> None:
    """Fault 14: a token opened connections for a minute, as often as one liked."""
    server = await start_server(*with_metrics())
    async with udp(server) as sock:
        client = Client(sock, server)
        await client.retried()
        token = client.token
        await client.connected()
        assert await server.metric("ztna_retry_tokens_validated") == 1
        client.quic.close()
        client.send()
        for replays in (1, 2):
            again = Client(sock, server, token=token)
            await again.until(lambda again=again: again.saw(ConnectionTerminated))  # type: ignore[misc]
            assert not again.saw(HandshakeCompleted)
            assert await server.metric("ztna_retry_token_failures") == replays
            # A reload makes the keys of the tokens anew, and must not forget which ones are spent.
            server.process.send_signal(signal.SIGHUP)
            await server.wait_metric("ztna_reloads_total", replays)
    async with udp(server) as elsewhere:
        other = Client(elsewhere, server)
        await other.retried()
        stolen = other.token
    async with udp(server) as sock:
        thief = Client(sock, server, token=stolen)
        await thief.until(lambda: thief.token not in (b"", stolen) or thief.saw(ConnectionTerminated))
        assert not thief.saw(HandshakeCompleted)
    assert await server.metric("ztna_retry_tokens_validated") == 1
    assert await server.metric('ztna_connections_total{stage="accepted"}') == 1


async def test_a_handshake_survives_a_restart_of_the_server(start_server: StartServer) -> None:
    """Fault 15: the key of Retry tokens was the process's own, so a restart broke handshakes under way."""
    server = await start_server("--client-auth", "optional")
    async with udp(server) as sock:
        client = Client(sock, server)
        await client.retried()
        address, state_dir = server.address, server.state_dir
        await server.terminate()
        restarted = await start_server(*with_metrics(), port=address[1], state_dir=state_dir)
        assert restarted.address == address
        await client.connected()
    assert await restarted.metric("ztna_retry_tokens_validated") == 1
    assert await restarted.metric("ztna_retry_sent_total") == 0


@pytest.mark.parametrize("address", ["::1", "[::1]", "127.0.0.1"])
async def test_any_spelling_of_an_address_can_be_bound(
    start_server: StartServer, engine: ClientEngine, address: str
) -> None:
    """Fault 18: IPv6 needed brackets, and clients over it were told no address."""
    server = await start_server("--client-auth", "optional", bind=address)
    observed = await (await dial(engine, server)).wait_observed()
    assert str(observed.host) == address.strip("[]")


async def test_several_addresses_are_served_at_once(start_server: StartServer, engine: ClientEngine) -> None:
    """Fault 18: there was one address to bind."""
    server = await start_server("--client-auth", "optional", "--bind", "::1")
    six = await server.wait_log("Server listening on [::1]:")
    connector = await join(engine, server, Role.CONNECTOR)
    host, port = str(six["address"]).rsplit(":", 1)
    server.address = (host.strip("[]"), int(port))
    agent = await join(engine, server, Role.AGENT)
    agent.send(udp_packet(INNER, APPLICATION, b"across"))
    assert read_udp(await received(connector)).payload == b"across"


async def test_a_connection_that_its_client_cannot_take_over_is_closed(
    start_server: StartServer, engine: ClientEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server(*with_metrics())

    def defect(*_: object) -> None:
        raise ValueError("injected by a test")

    with monkeypatch.context() as patch:
        patch.setattr("intermediate_server.client.engine.Connection", defect)
        with pytest.raises(ConnectError, match="injected by a test"):
            await dial(engine, server)
    assert (await server.wait_log("Connection closed"))["reason"] == "internal error"
    await (await join(engine, server, Role.AGENT)).close()
