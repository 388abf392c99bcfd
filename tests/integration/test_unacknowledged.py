"""A peer that takes packets and acknowledges none, beside one that is only slow to be sent anything."""

from __future__ import annotations

import asyncio
import contextlib
import time

from aioquic import tls

from intermediate_server.client import ClientEngine
from intermediate_server.types import Role
from intermediate_server.wire import close_codes
from tests.integration.conftest import PATIENCE, StartServer
from tests.integration.packets import udp_packet
from tests.integration.plain_client import Client, udp
from tests.integration.relaying import APPLICATION, INNER, join, with_metrics

PING = b"\x01" + bytes(7)


class Mute(Client):
    """Once connected it sends nothing but PING frames, so that it never acknowledges anything."""

    number = 0

    def ping(self) -> None:
        """Send one, out of order, which is acknowledged at once (RFC 9000 section 13.2.1)."""
        self.number = max(self.number, self.quic._packet_number + 10) + 2
        header = b"\x43" + self.quic._peer_cid.cid + self.number.to_bytes(4)
        self.sock.send(self.quic._cryptos[tls.Epoch.ONE_RTT].encrypt_packet(header, PING, self.number))


async def test_who_acknowledges_nothing_is_closed(start_server: StartServer, engine: ClientEngine) -> None:
    server = await start_server(*with_metrics(), "--registration-timeout", "10m")
    async with udp(server) as sock:
        mute = Mute(sock, server)
        await mute.connected()
        loop = asyncio.get_running_loop()
        ended = asyncio.create_task(server.wait_log("Connection closed"))
        async with asyncio.timeout(3 * PATIENCE):
            while not ended.done():
                mute.ping()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(loop.sock_recv(sock, 2048), 0.1)
    line = await ended
    assert (line["code"], line["reason"]) == (close_codes.NOTHING_ACKNOWLEDGED, "packets are not acknowledged")
    assert await server.metric("ztna_connections_unacknowledged_total") == 1


async def test_who_is_sent_nothing_that_asks_for_it_stays(start_server: StartServer, engine: ClientEngine) -> None:
    """One that only sends is sent acknowledgements, which nobody acknowledges, as many as it likes."""
    server = await start_server(*with_metrics())
    await join(engine, server, Role.CONNECTOR)
    agent = await join(engine, server, Role.AGENT)
    load = [udp_packet(INNER, APPLICATION, bytes(1_000))] * 4
    begun, received = time.monotonic(), 0
    async with asyncio.timeout(3 * PATIENCE):
        while time.monotonic() < begun + 4 or received < 6_000:
            agent.send_many(load)
            received = (await agent.inspect()).received_packets
    assert agent.closed is None
    assert await server.metric("ztna_connections_unacknowledged_total") == 0
