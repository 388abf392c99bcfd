"""Sessions on a real engine in this process: what is written about peers comes of what the engine really sends.

Time is the test's: :meth:`Live.later` moves the loop's clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intermediate_server.client import ClientEngine, Connection
from intermediate_server.engine import Engine
from intermediate_server.engine.bridge import Bridge
from intermediate_server.pki import identity_of, temporary_secrets
from intermediate_server.pki.authority import Authority
from intermediate_server.policy import CertificatePolicy, Guard, Policy
from intermediate_server.registry import Registry
from intermediate_server.server.listener import listen_config, load_trust
from intermediate_server.sessions.dispatcher import Sessions
from intermediate_server.sessions.totals import SessionTotals
from intermediate_server.types import Address, Role
from tests.integration.site import until
from tests.unit.sessions_rig import MovedTime, moved_time
from tests.unit.settings import load


@dataclass
class Live:
    """A control plane, its engine, and the engine of its clients."""

    engine: Engine
    sessions: Sessions
    client: ClientEngine
    authority: Authority
    address: tuple[str, int]
    clocks: MovedTime
    issued: int = 0

    def certificate(self, *names: str) -> tuple[Path, Path]:
        """A client certificate with these ``.ztna`` names, all of one role, and its key."""
        self.issued += 1
        name, role = f"peer-{self.issued}", Role(names[0].split(".")[0])
        services = [each.removesuffix(".ztna").split(".", 1)[1] for each in names]
        self.authority.issue(role, name, services=services)
        return self.authority.certificate_file(name), self.authority.key_path(name)

    async def dial(self, cert: tuple[Path, Path] | None = None) -> Connection:
        """A connection that its session knows."""
        connection = await self.client.connect(
            self.address,
            ca_file=self.authority.certificate_path,
            server_name="ztna-server",
            cert_file=cert and cert[0],
            key_file=cert and cert[1],
        )
        await connection.wait_observed()
        return connection

    async def leave(self, *connections: Connection) -> None:
        """Close connections, and wait until no session is left of them."""
        before = len(self.sessions.live) - len(connections)
        for connection in connections:
            await connection.close()

        async def gone() -> bool:
            return len(self.sessions.live) == before

        await until(gone, "the end of sessions")

    def later(self, seconds: float) -> None:
        """Move the clock, and do what the server does each second."""
        self.clocks.skew += seconds
        self.sessions.decisions.sweep(asyncio.get_running_loop().time())


@asynccontextmanager
async def live(directory: Path, policy: Policy | None = None, **options: Any) -> AsyncIterator[Live]:
    """Sessions that ask ``policy``, by default the server's own with anonymous peers allowed."""
    flags = {"state_dir": str(directory / "state"), "port": "0", "bind": "127.0.0.1", "client_auth": "optional"}
    settings = load(flags, env={}, files=())
    trust = await asyncio.to_thread(load_trust, settings)
    engine = Engine()
    bridge = Bridge(engine)
    guard = Guard(policy or CertificatePolicy(anonymous=True))
    async with ClientEngine() as client, asyncio.TaskGroup() as tasks:
        sessions = Sessions(
            submit=bridge.submit,
            registry=Registry(),
            guard=guard,
            identify=identity_of,
            totals=SessionTotals(),
            spawn=tasks.create_task,
            **options,
        )
        bound = engine.listen(listen_config(settings, trust, temporary_secrets(), max_connections=1_000))
        address = Address.of(bound[0])
        authority = Authority(settings.state_dir)
        bridge.start(sessions.dispatch)
        with moved_time() as clocks:
            try:
                yield Live(engine, sessions, client, authority, (str(address.host), address.port), clocks)
            finally:
                await asyncio.to_thread(engine.close, 1_000)
                bridge.drain_now()
                sessions.stop()
                bridge.stop()
                await guard.aclose()
    assert bridge.dispatch_errors == 0
