"""A UDP socket that the kernel takes nothing from any more: whoever sends by another one does not notice."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from intermediate_server.testing import Agent, Application, Connector
from tests.e2e.field import APPLICATION, INNER, Field, exchange, register
from tests.e2e.netns import Host, sockets_of
from tests.integration.packets import udp_packet
from tests.integration.peers import PATIENCE

IP_RECVERR = 11

STANDSTILL = "root tbf rate 80bit burst 2k limit 100m"
"""What waits in this queue counts for the socket it came from; a packet leaves it in two minutes."""


BURSTS = """
import itertools, socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[1], int(sys.argv[2])))
sock.setblocking(False)
for number in itertools.count():
    try:
        for _ in range(200):
            sock.send(number.to_bytes(4) + bytes(1_000))
        while True:
            print(int.from_bytes(sock.recv(2_000)[:4]), flush=True)
    except (BlockingIOError, ConnectionRefusedError):
        time.sleep(0.1)
"""
"""Sends a burst of numbered datagrams each tenth of a second, and prints the numbers that come back."""


@contextmanager
def socket_of(pid: int, host: str) -> Iterator[socket.socket]:
    """The UDP socket of a process that is bound to this host, with the smallest send buffer there is."""
    for sock in sockets_of(pid, socket.SOCK_DGRAM):
        with sock:
            if sock.getsockname()[0] == host:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
                yield sock
                return
    raise AssertionError(f"no socket at {host}")


def is_full(host: Host, address: str) -> bool:
    """Whether the kernel takes no more from the UDP socket at this address."""
    listed = host.run("ss", "-Huanm", "src", address)
    numbers = {key: int(number) for key, number in re.findall(r"\b([a-z]+)(\d+)", listed)}
    return numbers["t"] >= numbers["tb"]


def engine_seconds(pid: int) -> float:
    """CPU that the engine's thread of a process has used."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().strip() == "ztna-engine":
            return int((task / "schedstat").read_text().split()[0]) / 1e9
    raise AssertionError("no engine thread")


async def cpu(pid: int, seconds: float) -> float:
    """The share of one core that the engine's thread uses while nothing is asked of it."""
    before, begun = engine_seconds(pid), time.monotonic()
    await asyncio.sleep(seconds)
    return (engine_seconds(pid) - before) / (time.monotonic() - begun)


@pytest.mark.parametrize("error", [False, True], ids=["quiet", "error"])
async def test_an_address_of_the_relay(field: Field, error: bool) -> None:
    # Three peers are started one after the other, which may take a while, and only then register.
    patient = ("--registration-timeout", "2m")
    await field.start_relay("--client-auth", "optional", *patient, bind="10.2.0.2,10.3.0.1", port=4433)
    pid = field.relay.process.pid
    stuck = await field.peer(field.agent, address="10.2.0.2")
    source, target = [await field.peer(field.connector, address="10.3.0.1") for _ in range(2)]
    await register(stuck, source, b"stuck")
    await register(target, source, b"fine")
    await exchange(stuck, source)
    await exchange(target, source)
    with socket_of(pid, "10.2.0.2") as sock:
        if error:
            # An ICMP error that waits on the socket, which counts as writable from then on whether it has room or not.
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            sock.sendto(b"nobody listens", ("10.1.0.2", 9))
            await exchange(stuck, source)
    field.middle.run("tc", "qdisc", "add", "dev", field.middle_cable, *STANDSTILL.split())
    async with asyncio.timeout(PATIENCE):
        while not is_full(field.middle, "10.2.0.2"):
            await source.send_many(udp_packet(APPLICATION, INNER, bytes(1_000)), 40)
            await asyncio.sleep(0.05)
    await source.send_many(udp_packet(APPLICATION, INNER, bytes(1_000)), 40)
    for _ in range(5):
        await exchange(target, source)
    assert await cpu(pid, 2.0) < 0.05
    assert is_full(field.middle, "10.2.0.2")
    await exchange(target, source)
    field.middle.run("tc", "qdisc", "del", "dev", field.middle_cable, "root")
    await exchange(stuck, source)
    assert not field.lost_connections()


async def test_the_connection_that_an_agent_leaves_for_another(field: Field) -> None:
    """The old one can send nothing any more and is still there when the new one is made beside it."""
    field.cable(4, field.router, field.agent)
    field.route_back(4)
    await field.start_relay()
    echo = await field.running.enter_async_context(await Application.begin("udp-echo", within=field.connector.within))
    url = "udp://{}:{}".format(*echo.address)
    await field.running.enter_async_context(
        await Connector.begin(field.relay, {"echo": url}, within=field.connector.within)
    )
    agent = await field.running.enter_async_context(
        await Agent.begin(field.relay, [("udp", "echo")], within=field.agent.within)
    )
    pid, address = agent.process.pid, agent.addresses[0].split(":")
    bursts = await asyncio.create_subprocess_exec(
        *field.agent.within, sys.executable, "-c", BURSTS, *address, stdout=asyncio.subprocess.PIPE
    )
    assert bursts.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            await bursts.stdout.readline()
        with socket_of(pid, "0.0.0.0") as sock:
            port = sock.getsockname()[1]
        field.agent.run("tc", "qdisc", "add", "dev", field.agent_cable, *STANDSTILL.split())
        async with asyncio.timeout(PATIENCE):
            while not is_full(field.agent, f"0.0.0.0:{port}"):  # noqa: ASYNC110  another process decides when
                await asyncio.sleep(0.05)
        field.use_cable(4)
        await agent.wait_log("Connected to", count=2)
        assert is_full(field.agent, f"0.0.0.0:{port}")
        async with asyncio.timeout(PATIENCE):
            last = first = int(await bursts.stdout.readline())
            while last < first + 20:
                last = int(await bursts.stdout.readline())
    finally:
        bursts.kill()
        await bursts.wait()
    assert await cpu(pid, 2.0) < 0.05
