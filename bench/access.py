"""What access control costs a registration, and how soon a reload ends what it takes away."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
import urllib.request
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bench import certificates
from bench.certificates import SERVER_NAME, Certificates
from bench.plan import Plan
from bench.processes import BenchmarkError, Server
from bench.report import Row
from intermediate_server import logs
from intermediate_server.admin import SessionTotals
from intermediate_server.client import ClientEngine, Connection
from intermediate_server.engine import Event
from intermediate_server.pki import identity_of
from intermediate_server.policy import CertificatePolicy, Guard, Policy, RulesPolicy
from intermediate_server.policy.rules_file import parse_rules
from intermediate_server.registry import Registry
from intermediate_server.server.sessions import Sessions
from intermediate_server.types import Role

CONNECTIONS = 2_000
RULES = 50
"""Rules that are looked at before the one that matches."""
ROUND = 0.02
"""Seconds between two packets of one connection, at the soonest."""
QUIET = 1.5
"""Seconds without a packet after which the last one has come."""
PACKET = bytes.fromhex("4500001c00004000401107ae64400001 0a000005 0009000900080000")
"""An empty UDP packet from 100.64.0.1 to 10.0.0.5, without UDP checksum."""


def access(plan: Plan) -> list[Row]:
    """The cost of rules for a registration, and the time from a reload to the last packet it should have stopped."""
    logs.configure(level="error")
    added = []
    with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name:
        files = certificates.make(Path(name), identities=1)
        certificate = x509.load_pem_x509_certificate((files.directory / "client-0.pem").read_bytes())
        der = certificate.public_bytes(Encoding.DER)
        for _ in range(3):
            without = _registration(CertificatePolicy(anonymous=False), der)
            added.append(1e6 * (_registration(_rules(), der) - without))
    rows = [Row(f"registration through {RULES} rules, added", "us", added, target=100, digits=1)]
    last, closed = [], []
    for _ in range(plan.repetitions):
        agents = {"name": "agents", "dns": ["agent.*.ztna"], "agent": ["web"]}
        connectors = {"name": "connectors", "dns": ["connector.*.ztna"], "connector": ["web"]}
        with plan.serve(rules=[agents, connectors]) as (server, files):
            one, other = asyncio.run(_live_cut(server, files))
        last.append(1_000 * one)
        closed.append(1_000 * other)
    label = f"{CONNECTIONS:,} connections"
    rows.append(Row(f"reload to the last relayed packet, {label}", "ms", last, target=1_000, digits=0))
    rows.append(Row("  to the last of them closed", "ms", closed, digits=0))
    return rows


def _rules() -> RulesPolicy:
    others = [
        {"name": f"rule {number}", "dns": [f"*.team-{number}.example.com"], "agent": [f"service-{number}-*"]}
        for number in range(RULES)
    ]
    return RulesPolicy(parse_rules([*others, {"name": "last", "dns": ["agent.*.ztna"], "agent": ["web"]}]))


def _registration(policy: Policy, certificate: bytes) -> float:
    """Seconds from the event to the commands for one registration, with all of the control plane between them."""

    async def run() -> float:
        sessions = Sessions(
            submit=lambda *_: None,
            registry=Registry(),
            guard=Guard(policy),
            identify=identity_of,
            totals=SessionTotals(),
            spawn=_spawn,
        )
        for conn in range(CONNECTIONS):
            sessions.dispatch(Event.Connected(conn, None, ("198.51.100.1", 4_000), [certificate], 1))
        message = b"\x10\x03web"
        gc.collect()
        begun = time.process_time()
        for conn in range(CONNECTIONS):
            sessions.dispatch(Event.Control(conn, message))
        spent = time.process_time() - begun
        sessions.stop()
        return spent / CONNECTIONS

    return asyncio.run(run())


def _spawn(coroutine: Coroutine[Any, Any, None], /) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(coroutine)


async def _live_cut(server: Server, files: Certificates) -> tuple[float, float]:
    """Seconds from a reload that takes everything from all agents to their last packet, and to their last close."""
    last = 0.0
    async with ClientEngine() as engine:

        async def join(role: Role) -> Connection:
            connection = await engine.connect(
                ("127.0.0.1", server.port),
                ca_file=files.ca,
                server_name=SERVER_NAME,
                cert_file=files.directory / "client-0.pem",
                key_file=files.directory / "client-0.key",
                handshake_timeout=60.0,
            )
            await connection.register(role, "web")
            return connection

        connector = await join(Role.CONNECTOR)
        agents: list[Connection] = []
        while len(agents) < CONNECTIONS:
            agents += await asyncio.gather(*(join(Role.AGENT) for _ in range(100)))
        ending = False

        async def talk() -> None:
            while not ending:
                for number, agent in enumerate(agents):
                    if agent.closed is None:
                        agent.send(PACKET)
                    if number % 50 == 0:
                        await asyncio.sleep(ROUND)

        async def listen() -> None:
            nonlocal last
            while True:
                await connector.receive()
                last = time.monotonic()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(talk())
            listening = tasks.create_task(listen())
            while last == 0.0:  # noqa: ASYNC110 - the other side of the relay decides when
                await asyncio.sleep(0.1)
            config = files.directory / "server.toml"
            config.write_text(config.read_text().replace('agent = ["web"]', 'agent = ["nothing"]'))
            begun = time.monotonic()
            await asyncio.to_thread(_reload, server)
            for agent in agents:
                await agent.wait_closed()
            closed = time.monotonic()
            while time.monotonic() - max(last, closed) < QUIET:  # noqa: ASYNC110 - nothing tells of nothing
                await asyncio.sleep(0.1)
            ending = True
            listening.cancel()
    if last < begun - 1:
        raise BenchmarkError("nothing was relayed before the reload")
    return last - begun, closed - begun


def _reload(server: Server) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{server.metrics_port}/reload", method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        if b'"withdrawn":2000' not in answer.read().replace(b" ", b""):
            raise BenchmarkError("the reload did not take everything from the agents")
