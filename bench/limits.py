"""Whether a rate limit holds for the one who exceeds it, and for nobody else."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from bench.certificates import Certificates
from bench.clients import PACKET, dial
from bench.loads import say
from bench.plan import Plan
from bench.processes import Server
from bench.report import Row
from intermediate_server.client import ClientEngine
from intermediate_server.types import Role

LIMIT = 1_000
"""Packets a second that an identity may send."""
OFFERED = (10 * LIMIT, 800, 800)
"""What the three of them send."""
WINDOW = 10.0
"""Seconds that are counted, after a first few for the burst that a limit allows."""
FIRST = 2.0
TICK = 0.01


def limits(plan: Plan) -> list[Row]:
    """One identity at ten times its limit, and two below theirs, to the same connector."""
    off, arrived = [], []
    agents = {"name": "agents", "dns": ["agent.*.ztna"], "agent": ["web"], "limits": {"packets-per-second": LIMIT}}
    connectors = {"name": "connectors", "dns": ["connector.*.ztna"], "connector": ["web"]}
    for _ in range(plan.repetitions):
        say("rate limits")
        with plan.serve(identities=1 + len(OFFERED), rules=[agents, connectors]) as (server, files):
            greedy, *others = asyncio.run(_shares(server, files))
        off.append(100 * abs(greedy - 1))
        arrived.append(100 * min(others))
    return [
        Row("ten times the limit offered, off the limit by", "%", off, target=5, digits=2),
        Row("  of what others send below it, arrived", "%", arrived, bound="at least", target=98, digits=2),
    ]


async def _shares(server: Server, files: Certificates) -> list[float]:
    """How much of what each may send arrived in the window."""
    sent, received = Counter[int](), Counter[int]()
    async with ClientEngine() as engine:
        connector = await dial(engine, server, files, identity=0)
        await connector.register(Role.CONNECTOR, "web")
        connections = [await dial(engine, server, files, identity=1 + each) for each in range(len(OFFERED))]
        for connection in connections:
            await connection.register(Role.AGENT, "web")

        async def talk(each: int) -> None:
            # The destination port says who sends: the inner source is translated on the way.
            packet = PACKET[:22] + each.to_bytes(2, "big") + PACKET[24:]
            begun = time.monotonic()
            while True:
                due = int(OFFERED[each] * (time.monotonic() - begun)) - sent[each]
                connections[each].send_many([packet] * due)
                sent[each] += due
                await asyncio.sleep(TICK)

        async def listen() -> None:
            while True:
                received[int.from_bytes((await connector.receive())[22:24], "big")] += 1

        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(talk(each)) for each in range(len(OFFERED))] + [tasks.create_task(listen())]
            await asyncio.sleep(FIRST)
            begun, before = time.monotonic(), (sent.copy(), received.copy())
            await asyncio.sleep(WINDOW)
            length = time.monotonic() - begun
            sent.subtract(before[0])
            received.subtract(before[1])
            for task in running:
                task.cancel()
    allowed = [min(sent[each], LIMIT * length) for each in range(len(OFFERED))]
    return [received[each] / allowed[each] for each in range(len(OFFERED))]
