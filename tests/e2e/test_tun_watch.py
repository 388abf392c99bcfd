"""What other programs do to the interface, and to the routes around it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from intermediate_server.testing import Agent
from tests.e2e.field import RELAY_V4, Field
from tests.e2e.tunnel import Site, curl, ping, tun_agent, web
from tests.integration.peers import PATIENCE

pytestmark = pytest.mark.timeout(300)

NAME = "ztna0"


@pytest.fixture
def site(field: Field, tmp_path: Path) -> Site:
    """What the connector's host serves."""
    return Site(field, tmp_path, field.connector)


@pytest.mark.parametrize(
    ("take", "taken"),
    [
        (f"route del {web()}/32", f"the route {web()}/32"),
        (f"-6 route del {web(6)}/128", f"the route {web(6)}/128"),
        (f"addr flush dev {NAME} scope global", "the address 100."),
        (f"link set {NAME} down", "the flag 'up'"),
        (f"link set {NAME} mtu 600", "the MTU"),
    ],
)
async def test_what_is_taken_from_the_interface_is_put_back(field: Field, site: Site, take: str, taken: str) -> None:
    await field.start_relay()
    await site.connect("--tun")
    agent = await tun_agent(field, field.agent)
    for version in (4, 6):
        await ping(field.agent, web(version))
    field.agent.ip(take)
    line = await agent.wait_log("Put back what another program took from ztna0")
    assert taken in line["event"]
    for version in (4, 6):
        await ping(field.agent, web(version))


async def test_a_connector_keeps_its_interface_too(field: Field, site: Site) -> None:
    await field.start_relay()
    connector = await site.connect("--tun")
    await tun_agent(field, field.agent)
    await ping(field.agent, web())
    field.connector.ip("route del 100.64.0.0/10")
    await connector.wait_log("the route 100.64.0.0/10")
    await ping(field.agent, web())


async def ended(agent: Agent) -> str:
    """What an agent that has failed had logged."""
    async with asyncio.timeout(PATIENCE):
        assert await agent.process.wait() == 1
    await agent.terminate()
    return " ".join(str(line["event"]) for line in agent.lines)


async def test_a_program_that_keeps_taking_ends_the_agent(field: Field, site: Site) -> None:
    await field.start_relay()
    agent = await tun_agent(field, field.agent)
    for count in range(1, 6):
        field.agent.ip(f"route del {web()}/32")
        await agent.wait_log("Put back", count=count)
    field.agent.ip(f"route del {web()}/32")
    assert f"another program keeps taking from ztna0: the route {web()}/32" in await ended(agent)


async def test_a_route_that_is_taken_over_ends_the_agent(field: Field) -> None:
    await field.start_relay()
    agent = await tun_agent(field, field.agent)
    field.agent.ip(f"route replace {web()}/32 via 10.1.0.1")
    assert f"{web()}/32 is routed elsewhere already" in await ended(agent)


async def test_an_interface_that_is_removed_ends_the_agent(field: Field) -> None:
    await field.start_relay()
    agent = await tun_agent(field, field.agent)
    field.agent.ip(f"link del {NAME}")
    assert NAME in await ended(agent)


async def test_a_default_route_must_not_swallow_the_tunnel_itself(field: Field, site: Site) -> None:
    await field.start_relay()
    await site.connect("--tun")
    agent = await tun_agent(field, field.agent, "--default-service", "web")
    field.agent.ip(f"route replace default dev {NAME}")
    said = await ended(agent)
    assert f"the route to the relay {RELAY_V4} leads into {NAME}" in said
    assert f"ip route add {RELAY_V4} via GATEWAY" in said
    # The route went with the interface; as the message says, with one beside it all is well.
    field.use_cable(1)
    field.agent.route(f"{RELAY_V4}/32", "10.1.0.1")
    await tun_agent(field, field.agent, "--default-service", "web", name="again")
    field.agent.ip(f"route replace default dev {NAME}")
    await ping(field.agent, web())


async def test_a_strict_filter_lets_answers_pass(field: Field, tmp_path: Path) -> None:
    await field.start_relay()
    for which in ("all", "default"):
        field.agent.set(f"net.ipv4.conf.{which}.rp_filter", 1)
    await tun_agent(field, field.agent)
    begun = time.monotonic()
    async with curl(field.agent, tmp_path / "none") as trying:
        _, said = await trying.communicate()
    assert trying.returncode == 7, said.decode()
    # No connector serves it: the relay says so, and curl need not wait for its own patience of 100 s.
    assert time.monotonic() - begun < 60


async def test_a_network_that_overlaps_is_told(field: Field, site: Site) -> None:
    await field.start_relay()
    field.network.link(field.agent, field.network.host(), [("100.101.102.103/32", "100.101.102.104/32")])
    agent = await tun_agent(field, field.agent)
    line = await agent.wait_log("has 100.101.102.103, which lies in 100.64.0.0/10")
    assert line["level"] == "warning"
