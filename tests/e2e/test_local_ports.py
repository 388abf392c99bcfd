"""Local ports of an agent, used by another host of its network."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from intermediate_server.testing import Agent, Application, Connector, Relay
from tests.e2e.netns import Network

ASK = """
import socket, sys
with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM) as asking:
    # It hears no other address than the one it asks.
    asking.connect((sys.argv[1], int(sys.argv[2])))
    asking.settimeout(30)
    for size in (5, 5000):
        asking.send(bytes(size))
        assert asking.recv(65_535) == bytes(size)
"""
V4, V6 = ("10.9.0.1", "10.9.0.3"), ("fd00:9::1", "fd00:9::3")


@pytest.mark.parametrize("bind", ["0.0.0.0", "[::]", "[fd00:9::3]", "10.9.0.3"])
async def test_udp_is_answered_from_every_address_to_every_host(
    network: Network, running: AsyncExitStack, tmp_path: Path, bind: str
) -> None:
    gateway, neighbour = network.host(), network.host()
    cable = network.link(gateway, neighbour, [("10.9.0.1/24", "10.9.0.2/24"), ("fd00:9::1/64", "fd00:9::2/64")])
    gateway.ip(f"addr add 10.9.0.3/24 dev {cable}")
    gateway.ip(f"addr add fd00:9::3/64 dev {cable} nodad")
    relay = await running.enter_async_context(await Relay.begin(tmp_path / "relay", within=gateway.within))
    echo = await running.enter_async_context(await Application.begin("udp-echo", within=gateway.within))
    url = "udp://{}:{}".format(*echo.address)
    await running.enter_async_context(await Connector.begin(relay, {"echo": url}, within=gateway.within))
    agent = await running.enter_async_context(
        await Agent.begin(relay, (), "--forward", f"udp:{bind}:0=echo", services=["echo"], within=gateway.within)
    )
    port = agent.addresses[0].rpartition(":")[2]
    asked = {"0.0.0.0": V4, "[::]": V4 + V6}.get(bind, (bind.strip("[]"),))
    for address in asked:
        for host in (neighbour, gateway):
            host.run(sys.executable, "-c", ASK, address, port)
