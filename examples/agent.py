"""An agent in twenty lines: learn the own public address, register for a service, ping its connector."""

import asyncio
import sys
from ipaddress import IPv4Address

from intermediate_server.client import connect
from intermediate_server.client.service_address import service_addresses
from intermediate_server.testing.ping import ping
from intermediate_server.types import Role


async def main(server: str, service: str, ca: str, cert: str | None = None, key: str | None = None) -> None:
    async with connect(server, ca_file=ca, cert_file=cert, key_file=key, server_name="ztna-server") as connection:
        print("seen at", await connection.wait_observed())
        await connection.register(Role.AGENT, service)
        seconds = await ping(connection, service, IPv4Address("100.64.0.1"), service_addresses(service)[0])
        print(f"answered in {seconds * 1000:.1f} ms")


asyncio.run(main(*sys.argv[1:]))
