"""Agents and connectors through the real server process."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.client import ClientEngine
from intermediate_server.errors import ConnectError, ConnectionClosed, RegistrationError
from intermediate_server.pki import ensure_development
from intermediate_server.types import Role
from tests.integration.conftest import StartServer
from tests.integration.packets import read_icmp, read_udp, sized_udp_packet, udp_packet
from tests.integration.peers import CONNECTOR, QuichePeer, quiche_program
from tests.integration.relaying import (
    APPLICATION,
    APPLICATION6,
    FAMILIES,
    INNER,
    INNER6,
    dial,
    join,
    received,
    with_metrics,
)

__all__ = ["quiche_program"]


async def test_one_socket_serves_both_families(start_server: StartServer, engine: ClientEngine) -> None:
    server = await start_server("--client-auth", "off", bind="::")
    for host in ("127.0.0.1", "::1"):
        server.address = (host, server.address[1])
        connection = await dial(engine, server)
        observed = await connection.wait_observed()
        assert str(observed.host) == host
        assert await connection.wait_observed_frame() == observed


async def test_relay_both_ways_and_rebinding(start_server: StartServer, engine: ClientEngine) -> None:
    server = await start_server(*with_metrics())
    connector = await join(engine, server, Role.CONNECTOR)
    agent = await join(engine, server, Role.AGENT)
    packet = udp_packet(INNER, APPLICATION, b"question")
    agent.send(packet)
    assert await received(connector) == packet
    answer = udp_packet(APPLICATION, INNER, b"answer")
    connector.send(answer)
    assert await received(agent) == answer

    before = await agent.wait_observed()
    agent.rebind()
    await agent.inspect()
    agent.send(packet, service="web")
    assert await received(connector) == packet
    after = await agent.wait_observed(other_than=before)
    assert after.port != before.port
    connector.send(answer)
    assert await received(agent) == answer
    await server.wait_log(f"Address changed from {before} to {after}")
    for way, sent in (("to_connector", packet), ("to_agent", answer)):
        for name, value in (("packets", 2), ("bytes", 2 * len(sent))):
            sample = f'ztna_service_{name}_total{{direction="{way}",service="web"}}'
            assert await server.metric(sample) == value, sample
    assert await server.metric('ztna_service_connectors{service="web",state="healthy"}') == 1


@FAMILIES
async def test_twenty_agents_with_one_inner_address_get_their_own_replies(
    start_server: StartServer, engine: ClientEngine, inner: tuple[str, int], application: tuple[str, int]
) -> None:
    server = await start_server("--client-auth", "optional")
    connector = await join(engine, server, Role.CONNECTOR)
    agents = [await join(engine, server, Role.AGENT) for _ in range(20)]
    for number, agent in enumerate(agents):
        agent.send(udp_packet(inner, application, f"question {number}".encode()))
    sources = set()
    for _ in agents:
        question = read_udp(await received(connector))
        sources.add(question.source)
        connector.send(udp_packet(application, question.source, question.payload.replace(b"question", b"answer")))
    assert len(sources) == len(agents), "every agent has its own inner address"
    for number, agent in enumerate(agents):
        answer = read_udp(await received(agent))
        assert answer.payload == f"answer {number}".encode()
        assert (answer.source, answer.destination) == (application, inner)


@FAMILIES
async def test_untouched_packets_find_their_way_back_by_their_flow(
    start_server: StartServer, engine: ClientEngine, inner: tuple[str, int], application: tuple[str, int]
) -> None:
    server = await start_server(*with_metrics(), "--inner-addresses", "off")
    connector = await join(engine, server, Role.CONNECTOR)
    agents = [await join(engine, server, Role.AGENT) for _ in range(5)]
    packets = [udp_packet((inner[0], 5_000 + n), application, b"from agent %d" % n) for n in range(5)]
    for agent, packet in zip(agents, packets, strict=True):
        agent.send(packet)
        assert await received(connector) == packet
    # Backwards, so that the newest agent is not the one every answer is for.
    answers = [udp_packet(application, (inner[0], 5_000 + n), b"for agent %d" % n) for n in range(5)]
    for answer in reversed(answers):
        connector.send(answer)
    for agent, answer in zip(agents, answers, strict=True):
        assert await received(agent) == answer
    # The flow of another agent is not taken over, it would get the other's answers.
    agents[0].send(packets[1])
    agents[0].send(packets[0])
    assert await received(connector) == packets[0]
    assert await server.metric('ztna_drops_total{reason="flow_conflict"}') == 1


async def test_failover_to_the_older_connector(start_server: StartServer, engine: ClientEngine) -> None:
    server = await start_server("--client-auth", "optional")
    older = await join(engine, server, Role.CONNECTOR)
    newer = await join(engine, server, Role.CONNECTOR)
    agent = await join(engine, server, Role.AGENT)
    packet = udp_packet(INNER, APPLICATION, b"x")
    agent.send(packet)
    assert await received(newer) == packet
    await newer.close()
    await server.wait_log("Connection closed")
    agent.send(packet)
    assert await received(older) == packet
    await older.close()
    await server.wait_log("Connection closed", count=2)
    agent.send(packet)
    unreachable = await received(agent)
    assert unreachable[9] == 1
    assert unreachable[20:22] == b"\x03\x01", "host unreachable"


async def test_client_certificates_decide_roles_and_services(start_server: StartServer, engine: ClientEngine) -> None:
    server = await start_server()
    with pytest.raises((ConnectError, ConnectionClosed)):
        await (await dial(engine, server)).wait_observed()
    agent_cert = server.certificate(["agent.web.ztna"])
    connector_cert = server.certificate(["connector.web.ztna"])
    connector = await join(engine, server, Role.CONNECTOR, cert=connector_cert)
    agent = await dial(engine, server, cert=agent_cert)
    for role, service in [(Role.AGENT, "other"), (Role.CONNECTOR, "web")]:
        with pytest.raises(RegistrationError):
            await agent.register(role, service)
    await agent.register(Role.AGENT, "WEB".lower())
    agent.send(udp_packet(INNER, APPLICATION, b"hello"))
    packet = read_udp(await received(connector))
    assert packet.payload == b"hello"
    assert packet.source[0] != INNER[0], "a proven agent has an address of its own"
    connector.send(udp_packet(APPLICATION, packet.source, b"world"))
    answer = read_udp(await received(agent))
    assert (answer.payload, answer.destination) == (b"world", INNER)


async def test_two_hundred_clients(start_server: StartServer, engine: ClientEngine) -> None:
    server = await start_server("--client-auth", "optional")
    connector = await join(engine, server, Role.CONNECTOR)
    agents = await asyncio.gather(*(join(engine, server, Role.AGENT) for _ in range(199)))
    for agent in agents:
        agent.send(udp_packet(INNER, APPLICATION, b"x"))
    sources = {read_udp(await received(connector)).source for _ in agents}
    assert len(sources) == len(agents), "every agent has its own inner address"


async def test_reconnecting_a_hundred_times(start_server: StartServer, engine: ClientEngine) -> None:
    server = await start_server(*with_metrics())
    connector = await join(engine, server, Role.CONNECTOR)
    sources: list[tuple[str, int]] = []
    for turn in range(100):
        agent = await join(engine, server, Role.AGENT)
        agent.send(udp_packet(INNER, APPLICATION, str(turn).encode()))
        while (question := await received(connector))[9] == 1:
            assert question[20:22] == b"\x03\x01", "host unreachable, for one that left"
        packet = read_udp(question)
        assert packet.payload == str(turn).encode()
        for late in sources[-3:]:
            connector.send(udp_packet(APPLICATION, late, b"for one that left"))
        sources.append(packet.source)
        connector.send(udp_packet(APPLICATION, packet.source, packet.payload))
        reply = read_udp(await received(agent))
        assert (reply.payload, reply.destination) == (packet.payload, INNER)
        assert len(set(sources)) == len(sources), "what is late for one agent finds no other"
        await agent.close()
        await server.wait_log("Connection closed", count=turn + 1)
    left = {
        "ztna_active_connections": 1,
        'ztna_connections{identity="anonymous"}': 1,
        'ztna_registered{role="agent"}': 0,
        'ztna_registered{role="connector"}': 1,
        "ztna_services": 1,
        "ztna_anonymous_clients": 1,
        "ztna_half_open": 0,
        "ztna_outbox_depth": 0,
    }
    assert {sample: await server.metric(sample) for sample in left} == left
    # An address may be held back for a while after its agent, but it is one for each.
    assert await server.metric("ztna_leases") <= 100


async def test_sighup_takes_a_new_certificate_keeps_connections_and_leaves_out_a_bad_file(
    start_server: StartServer, engine: ClientEngine, quiche_program: Path, tmp_path: Path
) -> None:
    old, new = (ensure_development(tmp_path / name, external_ip=None) for name in ("state-0", "other"))
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(old.certificate_pem)
    key.write_bytes(old.key_pem)
    key.chmod(0o600)
    server = await start_server("--client-auth", "optional", "--cert", str(certificate), "--key", str(key))
    agent = await join(engine, server, Role.AGENT)

    async def shown() -> bytes:
        async with QuichePeer.start(quiche_program, "connector", server.address, verify=False) as peer:
            return bytes.fromhex((await peer.connected())["certificate"])

    assert await shown() == der(old.certificate_pem)
    key.write_bytes(new.key_pem)
    certificate.write_bytes(new.certificate_pem)
    server.signal(signal.SIGHUP)
    await server.wait_log("Reloaded", why="SIGHUP")
    assert await shown() == der(new.certificate_pem)
    certificate.write_bytes(b"no certificate")
    server.signal(signal.SIGHUP)
    await server.wait_log("Reload failed", why="SIGHUP")
    assert await shown() == der(new.certificate_pem)
    await agent.register(Role.AGENT, "again")


def der(pem: bytes) -> bytes:
    """The first certificate of a chain."""
    return x509.load_pem_x509_certificates(pem)[0].public_bytes(Encoding.DER)


async def test_garbage_changes_nothing(start_server: StartServer, engine: ClientEngine) -> None:
    server = await start_server("--client-auth", "optional")
    connector = await join(engine, server, Role.CONNECTOR)
    agent = await join(engine, server, Role.AGENT)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=server.address)
    for size in (0, 1, 20, 1200, 1400):
        for first in (0x00, 0x40, 0x80, 0xC0, 0xFF):
            transport.sendto(bytes([first] * size))
    transport.close()
    agent.send_raw(b"")
    agent.send(udp_packet(INNER, APPLICATION, b"still here"))
    assert read_udp(await received(connector)).payload == b"still here"
    assert agent.closed is None


@pytest.mark.parametrize(
    ("inner", "application", "payload", "kind", "code", "dummy"),
    [(INNER, APPLICATION, 1_280, 3, 4, "192.0.0.8"), (INNER6, APPLICATION6, 1_350, 2, 0, "fd64:7a74:6e61:ffff::1")],
)
async def test_the_largest_packet_passes_and_one_byte_more_is_answered(
    start_server: StartServer,
    engine: ClientEngine,
    inner: tuple[str, int],
    application: tuple[str, int],
    payload: int,
    kind: int,
    code: int,
    dummy: str,
) -> None:
    server = await start_server("--client-auth", "optional")
    connector, agent = [
        await engine.connect(server.address, ca_file=server.ca_file, server_name="ztna-server", max_udp_payload=size)
        for size in (payload, 1472)
    ]
    await connector.register(Role.CONNECTOR, "web")
    await agent.register(Role.AGENT, "web")
    limit = payload - (1 + 20 + 4 + 16) - 9
    fits = sized_udp_packet(inner, application, limit)
    agent.send(fits)
    assert await received(connector) == fits
    agent.send(sized_udp_packet(inner, application, limit + 1))
    answer = read_icmp(await received(agent))
    assert (answer.kind, answer.code, answer.source, answer.destination) == (kind, code, dummy, inner[0])
    assert answer.rest == limit


async def test_health_and_metrics(start_server: StartServer, engine: ClientEngine) -> None:
    server = await start_server(*with_metrics())
    line = await server.wait_log("Admin listening on")
    base = "http://" + str(line["event"]).split("http://")[1].split()[0].rstrip("/")
    await join(engine, server, Role.AGENT)
    async with httpx.AsyncClient(base_url=base) as http:
        health = await http.get("/healthz")
        assert (health.status_code, health.text) == (200, "ok\n")
        scrapes = await asyncio.gather(*(http.get("/metrics") for _ in range(50)))
        assert all(scrape.status_code == 200 for scrape in scrapes)
        assert "ztna_active_connections 1.0" in scrapes[0].text
        assert (await http.get("/nothing")).status_code == 404
        assert (await http.get("/readyz")).status_code == 200


async def test_a_connector_that_stops_answering_is_passed_over(
    start_server: StartServer, engine: ClientEngine, quiche_program: Path
) -> None:
    server = await start_server("--client-auth", "optional")
    older = await join(engine, server, Role.CONNECTOR)
    agent = await join(engine, server, Role.AGENT)
    start = QuichePeer.start(quiche_program, "connector", server.address, ca_file=server.ca_file)
    async with start as newer:
        await newer.connected()
        assert await newer.register(CONNECTOR, b"web") == b"\x12\x00\x03web"
        packet = udp_packet(INNER, APPLICATION, b"x")
        agent.send(packet)
        assert await newer.packet() == packet
        # It vanishes as in a power cut: nothing is closed, nothing is acknowledged any more.
        await newer.kill()
        waiting = asyncio.create_task(received(older))
        while not waiting.done():
            agent.send(packet)
            await asyncio.wait({waiting}, timeout=0.1)
        assert waiting.result() == packet
    assert not any("Connection closed" in str(line.get("event")) for line in server.lines), "before any idle timeout"


async def test_every_drop_is_counted_and_told_of(start_server: StartServer, engine: ClientEngine) -> None:
    server = await start_server(*with_metrics())
    agent = await dial(engine, server)
    agent.send(udp_packet(INNER, APPLICATION, b"unregistered"))
    await received(agent)
    await agent.register(Role.AGENT, "web")
    agent.send(udp_packet(INNER, APPLICATION, b"no connector"))
    await received(agent)
    agent.send(udp_packet(("127.0.0.1", 1), APPLICATION, b"bad source"))
    agent.send_raw(b"\x5a" * 20)
    agent.send_raw(b"\x45" + bytes(30))
    agent.send(udp_packet(INNER, APPLICATION, b"the last one"))
    await received(agent)
    drops = dict.fromkeys(("unregistered", "bad_source", "hole_punch", "malformed"), 1) | {"no_connector": 2}
    for reason, count in drops.items():
        assert await server.metric(f'ztna_drops_total{{reason="{reason}"}}') == count, reason
    await server.wait_log("ropped")
