"""An agent in twenty lines: register, ping a host behind the relay, print the answer."""

import asyncio
import struct
import sys
from ipaddress import IPv4Address

from intermediate_server.client import connect
from intermediate_server.types import Role


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def ping(source: str, target: str) -> bytes:
    echo = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + b"hello..."
    echo = echo[:2] + struct.pack("!H", checksum(echo)) + echo[4:]
    ends = IPv4Address(source).packed + IPv4Address(target).packed
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(echo), 1, 0, 64, 1, 0) + ends
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + echo


async def main(server: str, ca_file: str, service: str) -> None:
    async with connect(server, ca_file=ca_file, server_name="ztna-server") as connection:
        print("seen at", await connection.wait_observed())
        await connection.register(Role.AGENT, service)
        connection.send(ping("100.64.0.1", "10.0.0.1"))
        print("answer:", (await connection.receive()).hex())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
