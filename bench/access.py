"""What access control costs a registration, and how soon a reload ends what it takes away."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
import urllib.request
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from bench import certificates
from bench.certificates import Certificates
from bench.clients import PACKET, dial
from bench.plan import Plan
from bench.processes import BenchmarkError, Server
from bench.report import Row
from intermediate_server import logs
from intermediate_server.client import ClientEngine, Connection
from intermediate_server.engine import Event
from intermediate_server.pki import identity_of
from intermediate_server.policy import CertificatePolicy, Guard, Policy, RulesPolicy
from intermediate_server.policy.rules_file import parse_rules
from intermediate_server.registry import Registry
from intermediate_server.sessions.dispatcher import Sessions
from intermediate_server.sessions.totals import SessionTotals
from intermediate_server.types import Role

CONNECTIONS = 2_000
RULES = 50
"""Rules that are looked at before the one that matches."""
ROUND = 0.02
"""Seconds between two packets of one connection, at the soonest."""
QUIET = 1.5
"""Seconds without a packet after which the last one has come."""


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
    label = f"{CONNECTIONS:,} connections"
    for name, change in (("reload to the last relayed packet", _take_rule), ("revocation, likewise", _deny)):
        last, closed = [], []
        for _ in range(plan.repetitions):
            one, other = _disconnection(plan, change)
            last.append(1_000 * one)
            closed.append(1_000 * other)
        rows.append(Row(f"{name}, {label}", "ms", last, target=1_000, digits=0))
        rows.append(Row("  to the last of them closed", "ms", closed, digits=0))
    return rows


def _disconnection(plan: Plan, change: Callable[[Certificates, Path], str]) -> tuple[float, float]:
    agents = {"name": "agents", "dns": ["agent.*.ztna"], "agent": ["web"]}
    connectors = {"name": "connectors", "dns": ["connector.*.ztna"], "connector": ["web"]}
    with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name:
        listed = Path(name) / "denied"
        listed.touch()
        with plan.serve(identities=2, rules=[agents, connectors], deny_list=listed) as (server, files):
            return asyncio.run(_live_disconnection(server, files, lambda: change(files, listed)))


def _take_rule(files: Certificates, _: Path) -> str:
    """Take the rule that allows the agents out of the configuration; what the answer to a reload must hold."""
    config = files.directory / "server.toml"
    config.write_text(config.read_text().replace('agent = ["web"]', 'agent = ["nothing"]'))
    return f'"revoked":{CONNECTIONS}'


def _deny(files: Certificates, listed: Path) -> str:
    """Deny the agents' certificate; what the answer to a reload must hold."""
    certificate = x509.load_pem_x509_certificate((files.directory / "client-1.pem").read_bytes())
    listed.write_text(certificate.fingerprint(SHA256()).hex())
    return f'"closed":{CONNECTIONS}'


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


async def _live_disconnection(server: Server, files: Certificates, change: Callable[[], str]) -> tuple[float, float]:
    """Seconds from a reload that takes everything from all agents to their last packet, and to their last close."""
    last = 0.0
    async with ClientEngine() as engine:

        async def join(role: Role, identity: int) -> Connection:
            connection = await dial(engine, server, files, identity=identity)
            await connection.register(role, "web")
            return connection

        connector = await join(Role.CONNECTOR, 0)
        agents: list[Connection] = []
        while len(agents) < CONNECTIONS:
            agents += await asyncio.gather(*(join(Role.AGENT, 1) for _ in range(100)))
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
            expected = change()
            begun = time.monotonic()
            await asyncio.to_thread(_reload, server, files, expected)
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


def _reload(server: Server, files: Certificates, expected: str) -> None:
    token = files.directory / "state" / "admin.token"
    # Servers of before have none.
    headers = {"Authorization": f"Bearer {token.read_text().strip()}"} if token.exists() else {}
    url = f"http://127.0.0.1:{server.metrics_port}/reload"
    request = urllib.request.Request(url, method="POST", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        if expected.encode() not in answer.read().replace(b" ", b""):
            raise BenchmarkError("the reload did not take everything from the agents")
