"""What agent and connector say, as programs, when there is nothing behind them."""

from __future__ import annotations

import asyncio
import socket
import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intermediate_server.client import probe
from intermediate_server.testing import Connector
from intermediate_server.testing.applications import PAGE
from intermediate_server.testing.plugin import Programs, StartAgent, StartApplication, StartConnector, StartRelay
from intermediate_server.testing.programs import PATIENCE
from intermediate_server.types import Role
from tests.integration.client_programs import fetch, fetch_until_served, run, trust, url


def port_nobody_has() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


async def until_it_refuses(address: str) -> None:
    """Until nothing listens there; what is let in before is reset."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await fetch(address)
            except ConnectionRefusedError:
                return
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.02)


async def test_a_backend_that_is_down(
    start_relay: StartRelay, start_connector: StartConnector, start_agent: StartAgent
) -> None:
    relay = await start_relay()
    down = f"127.0.0.1:{port_nobody_has()}"
    connector = await start_connector(relay, {"pg": f"tcp://{down}"})
    line = await connector.wait_log(f"Service 'pg': {down} refused the connection")
    assert line["level"] == "warning"
    agent = await start_agent(relay, [("tcp", "pg")])
    for _ in range(5):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await fetch(agent.addresses[0])
    await agent.wait_log("Service 'pg': the connection was refused behind its connector; the connector's log says why")
    told = await connector.status()
    assert told["services"] == {"pg": "registered, backend down"}
    assert told["backend_errors"] == [f"pg: {down} refused the connection"]
    for end, text in ((connector, "refused the connection"), (agent, "refused behind")):
        assert sum(text in str(line["event"]) for line in end.lines) == 1, "once, and then each half minute"


async def test_a_service_without_a_connector(
    start_relay: StartRelay, start_agent: StartAgent, start_application: StartApplication, programs: Programs
) -> None:
    relay = await start_relay()
    page = await start_application("http")
    agent = await start_agent(relay, [("tcp", "web")])
    line = await agent.wait_log("Service 'web' has no connector at the relay")
    assert line["level"] == "warning"
    line = await relay.wait_log("datagrams for service 'web': no_connector")
    assert line["service"] == "web"
    with pytest.raises(ConnectionRefusedError):
        await fetch(agent.addresses[0])
    told = await agent.status()
    assert told["services"] == {"web": "registered, no connector"}
    code, text = await run("agent", "status", "--status-socket", str(agent.socket))
    assert code == 0
    assert f"web registered, no connector  tcp {agent.addresses[0]}" in text
    connector = await programs.keep(Connector.begin(relay, {"web": url(page)}))
    await agent.wait_log("Service 'web' has a connector again")
    await fetch_until_served(agent.addresses[0])
    assert await fetch(agent.addresses[0]) == PAGE
    assert (await agent.status())["services"] == {"web": "registered"}
    await connector.terminate()
    await until_it_refuses(agent.addresses[0])
    told = await agent.status()
    assert told["services"] == {"web": "registered, no connector"}


async def test_netcheck_looks_behind_the_service(
    start_relay: StartRelay, start_connector: StartConnector, start_application: StartApplication
) -> None:
    relay = await start_relay()
    page, echo = await start_application("http"), await start_application("udp-echo")
    backends = {"web": url(page), "pg": f"tcp://127.0.0.1:{port_nobody_has()}", "echo": url(echo, "udp")}
    await start_connector(relay, backends)
    options = trust(relay, Role.AGENT, "checker", [*backends, "none"])
    for service, code, told in (
        ("web", 0, "its connector answers and its application takes connections"),
        ("echo", 0, "its connector answers; that its application does cannot be told, since it does not speak TCP"),
        ("pg", 1, "its connector answers, but a connection was refused behind it"),
        ("none", 1, "it has no connector at the relay"),
    ):
        ended, text = await run("netcheck", *options, "--agent", service)
        assert (ended, told in text) == (code, True), text
        assert (told in text.splitlines()[-1]) == (code == 1), "the verdict says what is wrong"


class TestPackets:
    """What netcheck makes of packets, hostile ones included."""

    SOURCE, DESTINATION = IPv4Address("100.64.0.1"), IPv4Address("198.18.0.1")

    @given(st.binary(max_size=80), st.booleans())
    def test_any_packet_is_read(self, data: bytes, headed: bool) -> None:
        packets = probe._Packets(self.SOURCE, self.DESTINATION)
        head = b"\x45" + bytes(8) + b"\x01\0\0" + self.DESTINATION.packed + self.SOURCE.packed
        found = probe.Behind()
        packets.read(head + data if headed else data, found)
        assert found == probe.Behind()

    def test_a_checksum_of_a_packet_is_right(self) -> None:
        packets = probe._Packets(self.SOURCE, self.DESTINATION)
        for packet in (*packets.questions(), packets.reset()):
            assert sum(struct.unpack("!10H", packet[:20])) % 0xFFFF == 0
