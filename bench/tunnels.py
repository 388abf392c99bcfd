"""What agent, relay and connector carry together: downloads and datagrams, beside the same without them."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sys
import tempfile
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e import netns

from bench.plan import Plan
from bench.processes import BenchmarkError
from bench.report import Row
from intermediate_server.client.service_address import service_addresses
from intermediate_server.testing import Agent, Application, Connector, Program, Relay

GIGABYTE = 1e9
SIZE, WINDOW, STREAM = 1_000, 32, 2_000
"""Bytes of a datagram, how many are under way at once, and how many a second make a stream."""
SILENCE = 0.5
"""Seconds without an answer after which what is under way is lost."""
FULL = 0.9
"""Share of a core above which it is the limit."""


def ports(plan: Plan) -> list[Row]:
    """TCP through userspace forwarding on two cores, all three programs together."""
    return _on_all_cores(_userspace(plan))


def datagrams(plan: Plan) -> list[Row]:
    """UDP through userspace forwarding on two cores, all three programs together with both ends."""
    return _on_all_cores(_datagrams(plan))


def tun(plan: Plan) -> list[Row]:
    """TCP through TUN interfaces on two cores, all three programs together, each in a network namespace."""
    reason = netns.missing()
    if reason is not None:
        print(f"bench: tun: skipped: {reason}", file=sys.stderr)
        return []
    netns.remove_abandoned()
    network = netns.Network()
    try:
        return _on_all_cores(_tun(plan, network))
    finally:
        network.remove()


def _on_all_cores(work: Coroutine[Any, Any, list[Row]]) -> list[Row]:
    before = os.sched_getaffinity(0)
    # Programs inherit it: here they share all cores, as they would on a small host.
    os.sched_setaffinity(0, set(range(os.cpu_count() or 1)))
    try:
        return asyncio.run(work)
    finally:
        os.sched_setaffinity(0, before)


async def _userspace(plan: Plan) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name:
        async with (
            await Relay.begin(Path(name) / "relay") as relay,
            await Application.begin("http") as page,
            await Connector.begin(relay, {"web": "tcp://{}:{}".format(*page.address)}) as connector,
            await Agent.begin(relay, [("tcp", "web")]) as agent,
        ):
            run = _Run({"agent": agent, "relay": relay, "connector": connector})
            await run.repeat(plan, through=agent.addresses[0], direct="{}:{}".format(*page.address))
    return run.rows("TCP through local ports: agent, relay and connector", target=300)


async def _datagrams(plan: Plan) -> list[Row]:
    seconds = float(plan.seconds)
    rates, lost, direct = [], [], []
    with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name:
        async with (
            await Relay.begin(Path(name) / "relay") as relay,
            await Application.begin("udp-echo") as echo,
            await Connector.begin(relay, {"echo": "udp://{}:{}".format(*echo.address)}),
            await Agent.begin(relay, [("udp", "echo")]) as agent,
        ):
            for _ in range(plan.repetitions):
                direct.append((await asyncio.to_thread(_echo, "{}:{}".format(*echo.address), seconds))[0])
                rates.append((await asyncio.to_thread(_echo, agent.addresses[0], seconds))[0])
                lost.append((await asyncio.to_thread(_echo, agent.addresses[0], seconds, rate=STREAM))[1])
    name = "UDP through local ports: agent, relay and connector"
    note = f"{SIZE} bytes there and back, {WINDOW} under way; both ends are Python"
    return [
        Row(name, "packets/s", rates, bound="at least", target=2_500, digits=0, note=note),
        Row("  the same without them", "packets/s", direct, digits=0),
        Row(f"  lost of {STREAM:,} packets/s", "%", lost, target=0.5),
    ]


def _echo(address: str, seconds: float, *, rate: int = 0) -> tuple[float, float]:
    """Packets a second that come back, and the percentage that does not.

    So many are sent as ``rate`` says, or else the next one for each that comes back. Raises ``OSError`` when the port
    refuses.
    """
    host, _, port = address.rpartition(":")
    sent = received = missed = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        peer.setblocking(False)
        peer.connect((host, int(port)))
        begin = heard = now = time.monotonic()
        # After the end, what is under way still counts.
        while now < begin + seconds or (received < sent and now < heard + SILENCE):
            due = int((now - begin) * rate) if rate else received + missed + WINDOW
            while sent < due and now < begin + seconds:
                peer.send(bytes(SIZE))
                sent += 1
            select.select([peer], [], [], 0.001)
            now = time.monotonic()
            with suppress(BlockingIOError):
                while True:
                    peer.recv(2 * SIZE)
                    received += 1
                    heard = now
            if now > heard + SILENCE:
                missed, heard = sent - received, now
    return received / seconds, 100 * (sent - received) / sent


async def _tun(plan: Plan, network: netns.Network) -> list[Row]:
    left, middle, right = (network.host() for _ in range(3))
    network.link(middle, left, [("10.1.0.1/24", "10.1.0.2/24")])
    network.link(middle, right, [("10.3.0.1/24", "10.3.0.2/24")])
    middle.forward()
    left.route("default", "10.1.0.1")
    right.route("default", "10.3.0.1")
    with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name:
        async with (
            await Relay.begin(Path(name) / "relay", bind="0.0.0.0", within=middle.within) as relay,
            await Application.begin("http", bind="0.0.0.0", within=right.within) as page,
        ):
            relay.address = ("10.3.0.1", relay.address[1])
            connector = Connector.begin(relay, {"web": None}, "--tun", within=right.within)
            agent = Agent.begin(relay, (), "--tun", services=["web"], within=left.within)
            async with await connector as serving, await agent as using:
                for end in (serving, using):
                    await end.wait_log("carries packets of up to")
                run = _Run({"agent": using, "relay": relay, "connector": serving}, left.within)
                port = page.address[1]
                await run.repeat(plan, through=f"{service_addresses('web')[0]}:{port}", direct=f"10.3.0.2:{port}")
    return run.rows("TCP through TUN interfaces: agent, relay and connector", target=500)


@dataclass(slots=True)
class _Run:
    """Downloads through three programs, and what they cost."""

    programs: Mapping[str, Program]
    within: Sequence[str] = ()
    """Where the download is started."""
    rates: list[float] = field(default_factory=list)
    direct: list[float] = field(default_factory=list)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    """Seconds for a gigabyte, by program."""
    shares: dict[str, list[float]] = field(default_factory=dict)
    """Share of a core while the download ran, by program; ``all`` is that of the whole host."""

    async def repeat(self, plan: Plan, *, through: str, direct: str) -> None:
        """Measure both ways as often as planned."""
        size = 100_000_000 if plan.quick else 400_000_000
        for _ in range(plan.repetitions):
            self.direct.append(await _download(direct, size, self.within))
            before = self._spent()
            rate = await _download(through, size, self.within)
            self.rates.append(rate)
            seconds = 8e-6 * size / rate
            for role, spent in self._spent().items():
                used = spent - before[role]
                self.shares.setdefault(role, []).append(used / seconds)
                if role in self.programs:
                    self.cpu.setdefault(role, []).append(used / (size / GIGABYTE))

    def rows(self, name: str, *, target: float) -> list[Row]:
        """The figures, and who was the limit."""
        rows = [
            Row(name, "Mbit/s", self.rates, bound="at least", target=target, digits=0, note=self._limit()),
            Row("  the same download without them", "Mbit/s", self.direct, digits=0),
        ]
        rows += [Row(f"  CPU of the {role} for a gigabyte", "s", values) for role, values in self.cpu.items()]
        return rows

    def _limit(self) -> str:
        shares = {role: max(values) for role, values in self.shares.items()}
        cores = os.cpu_count() or 1
        host = shares.pop("all")
        most = max(shares, key=shares.__getitem__)
        used = ", ".join(f"{role} {100 * share:.0f} %" for role, share in shares.items())
        if shares[most] >= FULL:
            limit = f"the thread of the {most}"
        elif host >= FULL * cores:
            limit = f"all {cores} cores"
        else:
            limit = "not the processor"
        return f"limit: {limit} ({used} of a core; {100 * host:.0f} % of {100 * cores} % used by all there is)"

    def _spent(self) -> dict[str, float]:
        """Seconds of CPU time so far."""
        return {role: _cpu(program) for role, program in self.programs.items()} | {"all": _cpu_of_host()}


async def _download(address: str, size: int, within: Sequence[str]) -> float:
    """Mbit/s of one download of ``size`` bytes."""
    words = ("curl", "-sS", "--fail", "--max-time", "120", "-o", "/dev/null", "-w", "%{size_download} %{time_total}")
    process = await asyncio.create_subprocess_exec(
        *within,
        *words,
        f"http://{address}/bytes/{size}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, error = await process.communicate()
    if process.returncode != 0:
        raise BenchmarkError(f"the download failed: {error.decode().strip()}")
    received, seconds = map(float, said.split())
    if received != size:
        raise BenchmarkError(f"the download ended {size - received:.0f} bytes early")
    return 8e-6 * size / seconds


def _cpu(program: Program) -> float:
    """Seconds of CPU time that a program has used (proc(5))."""
    fields = Path(f"/proc/{program.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _cpu_of_host() -> float:
    """Seconds for which the cores of this host were not idle, together (proc(5))."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
