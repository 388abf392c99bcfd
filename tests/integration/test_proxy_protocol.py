"""An application that learns the ends of each flow by the PROXY protocol, version 2."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from intermediate_server.client.service_address import service_addresses
from intermediate_server.engine import Backend, Forward
from intermediate_server.testing.plugin import StartAgent, StartConnector, StartRelay
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE, Server
from tests.integration.tunnels import Application, TunnelEngine, application, connected, exchange, until

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
LOCAL, PROXY = 0x20, 0x21
OVER_IPV4, OVER_IPV6 = 0x11, 0x21

End = tuple[IPv4Address | IPv6Address, int]


@dataclass
class Heard:
    """The application, and what its connections told."""

    application: Application
    flows: list[tuple[End, End]] = field(default_factory=list)
    local: int = 0


@asynccontextmanager
async def proxied_echo() -> AsyncIterator[Heard]:
    """An echo that reads the header as the specification has it (section 2.2)."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        signature, command, family, length = struct.unpack("!12sBBH", await reader.readexactly(16))
        addresses = await reader.readexactly(length)
        assert signature == SIGNATURE
        if command == LOCAL:
            heard.local += 1
            return
        assert (command, length) == (PROXY, {OVER_IPV4: 12, OVER_IPV6: 36}[family])
        size = (length - 4) // 2
        source_port, port = struct.unpack("!HH", addresses[-4:])
        source, destination = ip_address(addresses[:size]), ip_address(addresses[size:-4])
        heard.flows.append(((source, source_port), (destination, port)))
        writer.write(await reader.read())
        await writer.drain()

    async with application(handle) as app:
        heard = Heard(app)
        yield heard


async def test_programs(start_relay: StartRelay, start_connector: StartConnector, start_agent: StartAgent) -> None:
    relay = await start_relay()
    async with proxied_echo() as heard:
        url = "tcp+proxy://{}:{}".format(*heard.application.address)
        connector = await start_connector(relay, {"web": url})
        agent = await start_agent(relay, [("tcp", "web")])
        host, _, port = agent.addresses[0].rpartition(":")
        async with asyncio.timeout(PATIENCE):
            assert await exchange((host, int(port)), b"first") == b"first"
            assert await exchange((host, int(port)), b"second") == b"second"
        assert (await connector.status())["backends"] == {"web": [url]}
        await until(lambda: heard.local == 1)
        [((source, source_port), destination), ((again, other_port), _)] = heard.flows
        assert source == again
        assert source in ip_network("100.64.0.0/10")
        assert source_port != other_port
        assert destination[0] == service_addresses("web")[0]


async def test_ipv6(server: Server, tunnels: TunnelEngine) -> None:
    async with proxied_echo() as heard:
        v4, v6 = service_addresses("web")
        backends = await tunnels.open_backends(
            [
                Backend(
                    service=b"web",
                    protocol="tcp",
                    addresses=[heard.application.address],
                    service_addresses=[str(v4), str(v6)],
                    proxy_protocol=True,
                )
            ]
        )
        forward = Forward(protocol="tcp", bind=("127.0.0.1", 0), service=b"web", destination=(str(v6), 443))
        forwards, [port] = await tunnels.open_forwards([forward])
        await tunnels.attach(backends, await connected(tunnels, server, Role.CONNECTOR, "web"))
        await tunnels.attach(forwards, await connected(tunnels, server, Role.AGENT, "web"), ["web"])
        async with asyncio.timeout(PATIENCE):
            assert await exchange(port, b"question") == b"question"
        [((source, _), destination)] = heard.flows
        assert (destination, source.version) == ((v6, 443), 6)
