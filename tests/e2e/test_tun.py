"""What people do through a tunnel, with their own tools, in networks as they are."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.field import Field
from tests.e2e.tunnel import MEGABYTE, Site, check, curl, download, grown, ping, tun_agent, web

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
    await ping(field.agent, web())
    await ping(field.agent, web(6))
    await download(field.agent, tmp_path / "got", site.checksum)


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


# The userspace stack is far slower than the kernel where every tenth packet is lost.
@pytest.mark.parametrize(
    ("percent", "flags", "size"),
    [(2, (), MEGABYTE), (2, ("--tun",), MEGABYTE), (10, (), MEGABYTE // 10), (10, ("--tun",), MEGABYTE)],
    ids=["2-backend", "2-tun", "10-backend", "10-tun"],
)
async def test_loss(field: Field, site: Site, tmp_path: Path, percent: int, flags: tuple[str, ...], size: int) -> None:
    await field.start_relay()
    await site.serve_file(size)
    await site.connect(*flags)
    await tun_agent(field, field.agent)
    # Of both directions.
    field.router.lose(percent)
    await download(field.agent, tmp_path / "got", site.checksum)
    assert field.router.lost() > 0


async def test_a_small_mtu_in_the_middle(field: Field, site: Site, tmp_path: Path) -> None:
    field.narrow(1280)
    await field.start_relay()
    await site.serve_file(20 * MEGABYTE)
    await site.connect("--tun")
    await tun_agent(field, field.agent)
    await download(field.agent, tmp_path / "got", site.checksum)


async def test_a_relay_that_is_killed_during_a_download(field: Field, site: Site, tmp_path: Path) -> None:
    relay = await field.start_relay()
    await site.serve_file(60 * MEGABYTE)
    connector = await site.connect()
    agent = await tun_agent(field, field.agent)
    target = tmp_path / "got"
    async with curl(field.agent, target, "--limit-rate", "10M") as downloading:
        await grown(target, 10 * MEGABYTE)
        await relay.kill()
        assert target.stat().st_size < 50 * MEGABYTE
        await field.start_relay(port=relay.address[1])
        for end in (agent, connector):
            await end.wait_log("Registered as", count=2)
        _, said = await downloading.communicate()
    assert downloading.returncode == 0, said.decode()
    check(target, site.checksum)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_connector_that_goes_is_replaced(field: Field, site: Site, tmp_path: Path, how: signal.Signals) -> None:
    await field.start_relay()
    await site.serve_file(MEGABYTE)
    await site.connect(name="first")
    await tun_agent(field, field.agent)
    await download(field.agent, tmp_path / "one", site.checksum)
    await site.connect(name="second")
    first, second = site.connectors
    # Either may be the one this agent is served by: the other follows it, and then it again.
    for number, (going, name) in enumerate(((first, "third"), (second, "fourth"))):
        going.signal(how)
        await going.process.wait()
        await download(
            field.agent, tmp_path / f"again-{number}", site.checksum, "--connect-timeout", "3", "--retry", "20",
            "--retry-all-errors", "--retry-delay", "0",
        )  # fmt: skip
        await site.connect(name=name)


async def test_someone_typing_during_a_download(field: Field, site: Site, tmp_path: Path) -> None:
    await field.start_relay()
    await site.serve_file(100 * MEGABYTE)
    await site.connect("--tun")
    await tun_agent(field, field.agent)
    await ping(field.agent, web())
    target = tmp_path / "got"
    async with curl(field.agent, target):
        await grown(target, MEGABYTE)
        said = await asyncio.to_thread(field.agent.run, "ping", "-c", "20", "-i", "0.05", web())
    average = float(said.rpartition("= ")[2].split("/")[1])
    # Queues that are too long show as seconds.
    assert average < 500, said
