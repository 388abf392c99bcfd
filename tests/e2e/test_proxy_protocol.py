"""An application that learns by the PROXY protocol which agent with a TUN interface reaches it."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from intermediate_server.client.service_address import service_addresses
from intermediate_server.testing import Connector, Program
from tests.e2e.field import Field
from tests.e2e.tunnel import PORT, ping, tun_agent, web

pytestmark = pytest.mark.timeout(300)

SPOKEN = {4: ("2111000c", 4), 6: ("21210024", 16)}
"""How a header of a proxied connection begins after its signature, and the bytes of an address."""


async def test_a_tun_agent_is_named(field: Field) -> None:
    await field.start_relay()
    starting = Program.start(str(PORT), module="tests.programs.proxy_header", within=field.connector.within)
    application = await field.running.enter_async_context(await starting)
    await application.wait_log("ready")
    backends = {"web": f"tcp+proxy://127.0.0.1:{PORT}"}
    connecting = Connector.begin(field.relay, backends, within=field.connector.within)
    await field.running.enter_async_context(await connecting)
    await tun_agent(field, field.agent)
    for version, (begin, size) in SPOKEN.items():
        await ping(field.agent, web(version))
        host = f"[{web(6)}]" if version == 6 else web(4)
        said = await asyncio.to_thread(field.agent.run, "curl", "-sS", "--max-time", "60", f"telnet://{host}:{PORT}")
        assert said.startswith(begin), said
        addresses = bytes.fromhex(said.removeprefix(begin))
        source, destination = ip_address(addresses[:size]), ip_address(addresses[size : 2 * size])
        assert destination == service_addresses("web")[0 if version == 4 else 1]
        assert str(source) in field.agent.run("ip", "-o", "addr", "show"), "the inner address of the agent"
        assert int.from_bytes(addresses[-2:]) == PORT
