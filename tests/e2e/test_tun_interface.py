"""The interface itself: what it has, what it follows, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import json
import signal
from ipaddress import ip_interface
from pathlib import Path

import pytest

from intermediate_server.client.agent import WRAPPER
from intermediate_server.testing import Agent, ProgramError
from tests.e2e.field import Field
from tests.e2e.netns import Host
from tests.e2e.tunnel import MEGABYTE, Site, download, ping, tun_agent, web
from tests.integration.peers import PATIENCE

pytestmark = pytest.mark.timeout(300)

NAME = "ztna0"
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGKILL]


@pytest.fixture
def site(field: Field, tmp_path: Path) -> Site:
    """What the connector's host serves."""
    return Site(field, tmp_path, field.connector)


def left(host: Host) -> list[str]:
    """What a host has of a tunnel: interface, addresses and routes."""
    everything = host.run("ip", "-o", "addr") + host.run("ip", "route") + host.run("ip", "-6", "route")
    return [line for line in everything.splitlines() if "ztna" in line or web() in line or web(6) in line]


def link_mtu(host: Host) -> int:
    """The MTU that the kernel has for the interface."""
    found: list[dict[str, int]] = json.loads(host.run("ip", "-j", "link", "show", NAME))
    return found[0]["mtu"]


@pytest.mark.parametrize("how", SIGNALS)
async def test_nothing_stays(field: Field, site: Site, how: signal.Signals) -> None:
    await field.start_relay()
    connector = await site.connect("--tun")
    agent = await tun_agent(field, field.agent)
    await ping(field.agent, web())
    for host, end in ((field.agent, agent), (field.connector, connector)):
        assert left(host)
        end.signal(how)
        async with asyncio.timeout(PATIENCE):
            await end.process.wait()
        assert left(host) == []


async def test_a_route_of_somebody_else_is_left_alone(field: Field) -> None:
    await field.start_relay()
    field.agent.ip(f"route add {web()}/32 via 10.1.0.1")
    before = left(field.agent)
    with pytest.raises(ProgramError, match="is routed elsewhere already"):
        await tun_agent(field, field.agent)
    assert left(field.agent) == before


async def test_a_name_that_is_taken(field: Field) -> None:
    await field.start_relay()
    with pytest.raises(ProgramError, match=f"cannot make the interface {field.agent_cable}"):
        await tun_agent(field, field.agent, "--tun-name", field.agent_cable)
    assert left(field.agent) == []


async def test_without_the_capability(field: Field) -> None:
    await field.start_relay()
    within = (*field.agent.within, "setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")
    with pytest.raises(ProgramError, match="run with CAP_NET_ADMIN"):
        await Agent.begin(field.relay, (), "--tun", services=["web"], within=within)
    assert left(field.agent) == []


async def test_the_mtu_is_what_a_datagram_carries(field: Field, site: Site, tmp_path: Path) -> None:
    await field.start_relay()
    await site.serve_file(MEGABYTE)
    await site.connect("--tun")
    agent = await tun_agent(field, field.agent)
    wide = await settled(field, agent)
    assert wide > 1280
    field.narrow(1280)
    await download(field.agent, tmp_path / "got", site.checksum)
    narrow = await settled(field, agent, below=wide)
    assert narrow < 1280


async def settled(field: Field, agent: Agent, *, below: int = 1 << 16) -> int:
    """The MTU of the interface once it is below this, and that of a DATAGRAM less what is around a packet."""
    async with asyncio.timeout(PATIENCE):
        while True:
            status = await agent.status()
            mtu = link_mtu(field.agent)
            if mtu < below and mtu == status["interface_mtu"] == status["max_datagram"] - WRAPPER - len("web"):
                return mtu
            await ping(field.agent, web(), "-s", "1200")


async def test_the_address_is_the_one_the_relay_leases(field: Field, site: Site) -> None:
    await field.start_relay()
    await site.connect("--tun")
    agent = await tun_agent(field, field.agent)
    for version in (4, 6):
        await ping(field.agent, web(version))
    assert field.metric("ztna_translated_total") == 0
    for address in (await agent.status())["interface_addresses"]:
        assert f"inet{'6' if ip_interface(address).version == 6 else ''} {address}/" in "\n".join(left(field.agent))
    # Another one is translated, so the count counts.
    await agent.terminate()
    await tun_agent(field, field.agent, "--address", "10.99.0.1", name="other")
    await ping(field.agent, web())
    assert field.metric("ztna_translated_total") > 0


async def test_a_kernel_without_ipv6(field: Field, site: Site, tmp_path: Path) -> None:
    await field.start_relay()
    await site.serve_file(MEGABYTE)
    for host in (field.agent, field.connector):
        for which in ("all", "default"):
            host.set(f"net.ipv6.conf.{which}.disable_ipv6", 1)
    connector = await site.connect("--tun")
    agent = await tun_agent(field, field.agent)
    for end in (agent, connector):
        await end.wait_log("carries no IPv6: the kernel refuses it")
    await download(field.agent, tmp_path / "got", site.checksum)
