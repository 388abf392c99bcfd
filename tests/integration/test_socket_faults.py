"""What may come to, and fail on, a UDP socket in the open internet; the server goes on."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
import subprocess

import pytest

from intermediate_server.client import ClientEngine
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE, Server, StartServer
from tests.integration.packets import read_udp, udp_packet
from tests.integration.relaying import APPLICATION, INNER, join, received, with_metrics


async def relays(engine: ClientEngine, server: Server) -> None:
    """The server still takes clients and relays for them."""
    connector = await join(engine, server, Role.CONNECTOR, "proof")
    agent = await join(engine, server, Role.AGENT, "proof")
    agent.send(udp_packet(INNER, APPLICATION, b"still here"))
    assert read_udp(await received(connector)).payload == b"still here"


def long_header(version: int, size: int) -> bytes:
    header = b"\xc0" + version.to_bytes(4, "big") + b"\x08" + bytes(8) + b"\x08" + bytes(8)
    return header.ljust(size, b"\0")


async def test_only_full_sized_packets_get_a_version_negotiation(
    start_server: StartServer, engine: ClientEngine
) -> None:
    """Fault 10: it was sent for smaller ones too."""
    server = await start_server("--client-auth", "optional")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(server.address)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        # The small one is sent first: were it answered, its answer would be the first to come.
        client.send(long_header(0xFACEB00C, 600).replace(bytes(8), b"smallone", 1))
        client.send(long_header(0xFACEB00C, 1200).replace(bytes(8), b"bigenoug", 1))
        async with asyncio.timeout(PATIENCE):
            answer = await loop.sock_recv(client, 2048)
    assert answer[0] & 0x80
    assert answer[1:5] == bytes(4), "Version Negotiation"
    assert b"bigenoug" in answer
    assert answer.endswith(b"\0\0\0\x01")
    await relays(engine, server)


@pytest.mark.skipif(os.geteuid() != 0, reason="a raw socket needs root")
async def test_source_port_zero(start_server: StartServer, engine: ClientEngine) -> None:
    """Fault 2: one such packet ended the process."""
    server = await start_server(*with_metrics(), "--disable-retry")
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
        payload = long_header(1, 1200)
        for _ in range(3):
            raw.sendto(struct.pack("!HHHH", 0, server.address[1], 8 + len(payload), 0) + payload, server.address)
    await relays(engine, server)
    assert await server.metric('ztna_udp_dropped_total{reason="source_port_zero"}') == 3


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("nft") is None, reason="needs root and nftables")
async def test_sends_that_the_kernel_refuses(start_server: StartServer, engine: ClientEngine) -> None:
    """Fault 2: an error of a send ended the process."""
    server = await start_server(*with_metrics())
    connector = await join(engine, server, Role.CONNECTOR)
    agent = await join(engine, server, Role.AGENT)
    table = f"ztna_test_{server.address[1]}"

    def nft(*words: str) -> None:
        subprocess.run(["nft", *words], check=True, capture_output=True)

    try:
        nft("add", "table", "inet", table)
        nft("add", "chain", "inet", table, "out", "{ type filter hook output priority 0; }")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"nftables cannot be used here: {error.stderr.decode().strip()}")
    try:
        # Every send of the server now fails with EPERM.
        nft("add", "rule", "inet", table, "out", "udp", "sport", str(server.address[1]), "counter", "drop")
        async with asyncio.timeout(PATIENCE):
            while not await server.metric('ztna_udp_errors_total{direction="sent"}'):
                agent.send(udp_packet(INNER, APPLICATION, b"lost"))
    finally:
        nft("delete", "table", "inet", table)
    agent.send(udp_packet(INNER, APPLICATION, b"end"))
    while read_udp(await received(connector)).payload != b"end":
        pass
    await relays(engine, server)
