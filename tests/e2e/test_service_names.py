"""Names of services on the host of an agent."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from intermediate_server.client.service_address import service_addresses
from tests.e2e.field import Field
from tests.e2e.tunnel import tun_agent
from tests.integration.peers import PATIENCE

pytestmark = pytest.mark.timeout(300)


async def test_names_live_as_long_as_the_agent(field: Field, tmp_path: Path) -> None:
    await field.start_relay()
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    lines = [f"{address} web.ztna" for address in service_addresses("web")]
    for how in (signal.SIGKILL, signal.SIGTERM):
        agent = await tun_agent(field, field.agent, "--hosts", str(hosts), name=how.name.lower())
        shown = hosts.read_text().splitlines()
        assert [line for line in shown if not line.startswith("#")] == ["127.0.0.1 localhost", *lines]
        assert len(shown) == 3 + len(lines), "the block of the killed one is gone"
        agent.signal(how)
        async with asyncio.timeout(PATIENCE):
            await agent.process.wait()
    assert hosts.read_text() == "127.0.0.1 localhost\n"
