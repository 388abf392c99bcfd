"""What agent, relay and connector carry together: a download through local ports, beside the same without them."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import time
from pathlib import Path

from bench.plan import Plan
from bench.processes import BenchmarkError
from bench.report import Row
from intermediate_server.testing import Agent, Application, Connector, Program, Relay

GIGABYTE = 1e9


def ends(plan: Plan) -> list[Row]:
    """TCP through userspace forwarding on two cores, all three programs together."""
    size = 100_000_000 if plan.quick else 400_000_000
    before = os.sched_getaffinity(0)
    # Programs inherit it: here they share both cores, as they would on a small host.
    os.sched_setaffinity(0, set(range(os.cpu_count() or 1)))
    try:
        return asyncio.run(_ends(size, plan.repetitions))
    finally:
        os.sched_setaffinity(0, before)


async def _ends(size: int, repetitions: int) -> list[Row]:
    rates: list[float] = []
    direct: list[float] = []
    with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name:
        async with (
            await Relay.begin(Path(name) / "relay") as relay,
            await Application.begin("http") as page,
            await Connector.begin(relay, {"web": "tcp://{}:{}".format(*page.address)}) as connector,
            await Agent.begin(relay, [("tcp", "web")]) as agent,
        ):
            programs = {"agent": agent, "relay": relay, "connector": connector}
            cpu: dict[str, list[float]] = {role: [] for role in programs}
            host, _, port = agent.addresses[0].rpartition(":")
            for _ in range(repetitions):
                direct.append(await asyncio.to_thread(_download, page.address, size))
                marks = {role: _cpu(program) for role, program in programs.items()}
                rates.append(await asyncio.to_thread(_download, (host, int(port)), size))
                for role, program in programs.items():
                    cpu[role].append((_cpu(program) - marks[role]) / (size / GIGABYTE))
    rows = [
        Row("TCP through agent, relay and connector", "Mbit/s", rates, bound="at least", target=300, digits=0),
        Row("  the same download without them", "Mbit/s", direct, digits=0),
    ]
    rows += [Row(f"  CPU of the {role} for a gigabyte", "s", values, digits=2) for role, values in cpu.items()]
    return rows


def _download(address: tuple[str, int], size: int) -> float:
    """Mbit/s of one download of ``size`` bytes."""
    buffer = bytearray(1 << 20)
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(f"GET /bytes/{size} HTTP/1.1\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        left = size - len(head.partition(b"\r\n\r\n")[2])
        begun = time.perf_counter()
        while left > 0:
            received = connection.recv_into(buffer)
            if not received:
                raise BenchmarkError(f"the download ended {left} bytes early")
            left -= received
        return 8e-6 * size / (time.perf_counter() - begun)


def _cpu(program: Program) -> float:
    """Seconds of CPU time that a program has used (proc(5))."""
    fields = Path(f"/proc/{program.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
