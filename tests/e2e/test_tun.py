"""What people do through a tunnel, with their own tools, in networks as they are."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from intermediate_server.pki import Authority
from tests.e2e.field import Field
from tests.e2e.tunnel import MEGABYTE, Site, download, ping, tun_agent, web
from tests.integration.packet_stream import PATIENT

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def site(field: Field, tmp_path: Path) -> Site:
    """What the connector's host serves."""
    return Site(field, tmp_path, field.connector)


@pytest.mark.parametrize("flags", [(), ("--tun",)], ids=["backend", "tun"])
async def test_ping_and_a_large_download(field: Field, site: Site, tmp_path: Path, flags: tuple[str, ...]) -> None:
    await field.start_relay()
    await site.serve_file(100 * MEGABYTE)
    await site.connect(*flags)
    await tun_agent(field, field.agent)
    for version in (4, 6):
        # The larger ones leave the interface in fragments, and so do their answers.
        for size in ("56", "1400", "8000"):
            await ping(field.agent, web(version), "-s", size)
    await download(field.agent, tmp_path / "got", site.checksum)


@pytest.mark.parametrize(("flags", "pause"), [((), "0.02"), (("--tun",), "0.002")], ids=["backend", "tun"])
async def test_new_certificates_lose_no_ping(field: Field, site: Site, flags: tuple[str, ...], pause: str) -> None:
    # A connector itself answers so many in a second and no more.
    await field.start_relay()
    connector = await site.connect(*flags, *PATIENT)
    agent = await tun_agent(field, field.agent, *PATIENT)
    await ping(field.agent, web())
    process = await asyncio.create_subprocess_exec(
        *field.agent.within, "ping", "-q", "-n", "-i", pause, web(), stdout=asyncio.subprocess.PIPE
    )
    try:
        for number, (client, name) in enumerate(((agent, "agent"), (connector, "connector")), start=1):
            Authority(field.relay.state_dir).renew(name)
            await client.wait_log("Registered as", count=2)
            await field.relay.wait_log("Connection closed", reason="replaced", count=number)
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = await process.communicate()
    sent, received = map(int, re.findall(rb"(\d+) packets transmitted, (\d+) received", said)[0])
    # The last one may still be under way.
    assert sent - received <= 1, said


@pytest.mark.parametrize("reverse", [(), ("-R",)], ids=["up", "down"])
@pytest.mark.parametrize("protocol", [(), ("-u", "-b", "20M")], ids=["tcp", "udp"])
async def test_iperf3(field: Field, site: Site, protocol: tuple[str, ...], reverse: tuple[str, ...]) -> None:
    if shutil.which("iperf3") is None:
        pytest.skip("iperf3 is not installed (make system-packages)")
    await field.start_relay()
    await site.connect("--tun")
    await tun_agent(field, field.agent)
    await ping(field.agent, web())
    server = await asyncio.create_subprocess_exec(
        *field.connector.within, "iperf3", "-s", "-1", "--forceflush", stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    try:
        while b"listening" not in await server.stdout.readline():
            pass
        words = ("iperf3", "-c", web(), "-t", "3", "-J", *protocol, *reverse)
        end = json.loads(await asyncio.to_thread(field.agent.run, *words))["end"]
    finally:
        with suppress(ProcessLookupError):
            server.kill()
        await server.wait()
    if protocol:
        assert end["sum"]["packets"] > 1_000
        assert end["sum"]["lost_percent"] < 20
    else:
        assert end["sum_received"]["bytes"] > MEGABYTE


async def test_two_agents_with_one_inner_address(field: Field, site: Site, tmp_path: Path) -> None:
    await field.start_relay()
    await site.serve_file(20 * MEGABYTE)
    await site.connect("--tun")
    other = field.network.host()
    field.cable(4, field.router, other)
    other.route("default", "10.4.0.1")
    field.route_back(4)
    hosts = [field.agent, other]
    for number, host in enumerate(hosts):
        await tun_agent(field, host, "--address", "100.64.0.1", name=f"agent-{number}")
    await asyncio.gather(*(ping(host, web()) for host in hosts))
    await asyncio.gather(
        *(download(host, tmp_path / f"got-{number}", site.checksum) for number, host in enumerate(hosts))
    )


async def test_three_nats_between_them(field: Field, tmp_path: Path) -> None:
    # Two before the agent, as with a home router behind a carrier's; one before the connector.
    laptop, behind = field.network.host(), field.network.host()
    field.cable(5, field.agent, laptop)
    field.cable(6, field.connector, behind)
    laptop.route("default", "10.5.0.1")
    behind.route("default", "10.6.0.1")
    for nat, cable in (
        (field.agent, field.agent_cable),
        (field.router, field.middle_cable),
        (field.connector, field.connector_cable),
    ):
        nat.forward()
        nat.masquerade(cable, (20_000, 20_100))
    await field.start_relay()
    site = Site(field, tmp_path, behind)
    await site.serve_file(20 * MEGABYTE)
    connector = await site.connect()
    agent = await tun_agent(field, laptop)
    assert (await agent.status())["observed_address"].startswith("10.2.0.1:20")
    assert (await connector.status())["observed_address"].startswith("10.3.0.2:20")
    await ping(laptop, web())
    await download(laptop, tmp_path / "got", site.checksum)
