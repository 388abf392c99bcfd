"""What a policy that fails costs the relay: nothing but the registrations it is asked about."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from bench.certificates import Certificates
from bench.clients import dial
from bench.loads import lost_of, notes_of, relay_once, say
from bench.plan import Plan
from bench.processes import CpuUse, Server
from bench.report import Row
from intermediate_server.client import ClientEngine, Connection
from intermediate_server.types import Role
from intermediate_server.wire.datagrams import Register, encode

RATE = 20_000
"""Datagrams relayed a second."""
CONNECTIONS = 40
EACH = 50
"""Registrations a second of each connection, every one of another service."""
POLICIES = {"none": None, "raises": "Raising", "hangs": "Hanging", "takes 100 ms": "Slow"}


def hostile(plan: Plan) -> list[Row]:
    """Relay beside a flood of registrations: without a policy, and with three that ought not to be."""
    rows = []
    for what, policy in POLICIES.items():
        settings: dict[str, Any] = {} if policy is None else {"policy": f"bench.policies:{policy}"}
        with plan.serve(client_auth="optional", registration_timeout=120, **settings) as (server, files):
            runs = []
            for _ in range(plan.repetitions):
                say(f"a flood of registrations, policy: {what}")
                runs.append(asyncio.run(_beside_a_flood(plan, server, files)))
        reports = [report for report, _ in runs]
        cost = [use.total / max(1, report["window_received"]) for report, use in runs]
        label = f"policy {what}" if policy is None else f"policy that {what}"
        rows += [
            Row(
                f"CPU for a datagram beside a flood, {label}",
                "us",
                cost,
                note=notes_of(reports, lost_of(reports)),
                details=reports,
            ),
            Row("  lost", "%", [report["loss_percent"] for report in reports]),
            Row("  event-loop lag, mean", "ms", [report["lag"][0] for report in reports]),
            Row("  event-loop lag, worst sample at most", "ms", [report["lag"][1] for report in reports], digits=1),
        ]
    return rows


async def _beside_a_flood(plan: Plan, server: Server, files: Certificates) -> tuple[dict[str, Any], CpuUse]:
    names = itertools.count()

    async def ask(connection: Connection) -> None:
        while True:
            connection.send_raw(encode(Register(Role.AGENT, f"flood-{next(names)}")))
            await asyncio.sleep(1 / EACH)

    async with ClientEngine() as engine:
        connections = [await dial(engine, server, files) for _ in range(CONNECTIONS)]
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(ask(connection)) for connection in connections]
            try:
                return await asyncio.to_thread(relay_once, plan, server, files, RATE, plan.seconds, lag=True)
            finally:
                for task in asking:
                    task.cancel()
