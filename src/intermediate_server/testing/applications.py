"""Small applications to reach through a relay: ``python -m intermediate_server.testing.applications KIND ADDRESS``."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import suppress

PAGE = b"<!doctype html><title>private</title><p>This page came through the relay.</p>\n"
MAX_REQUEST = 16 << 10
READ = 64 << 10


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer GET: ``/`` with a page, ``/bytes/N`` with N zero bytes."""
    with suppress(OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode("ascii")
            size = int(path.removeprefix("/bytes/")) if path.startswith("/bytes/") else None
            length = len(PAGE) if size is None else size
            kind = "text/html" if size is None else "application/octet-stream"
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode())
            if size is None:
                writer.write(PAGE)
            for begin in range(0, size or 0, READ):
                writer.write(bytes(min(READ, (size or 0) - begin)))
                await writer.drain()
            await writer.drain()
    writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, and end when the other side has ended."""
    with suppress(OSError):
        while data := await reader.read(READ):
            writer.write(data)
            await writer.drain()
    writer.close()


class UdpEcho(asyncio.DatagramProtocol):
    """Sends back each datagram."""

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)


async def _serve(kind: str, address: str) -> None:
    loop = asyncio.get_running_loop()
    if kind == "udp-echo":
        transport, _ = await loop.create_datagram_endpoint(UdpEcho, local_addr=(address, 0))
        host, port = transport.get_extra_info("sockname")
    else:
        handler = {"http": http, "tcp-echo": echo}[kind]
        server = await asyncio.start_server(handler, address, 0, limit=MAX_REQUEST)
        host, port = server.sockets[0].getsockname()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    print(json.dumps({"event": "Listening", "host": host, "port": port}), flush=True)  # noqa: T201  its one line
    await stop.wait()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
