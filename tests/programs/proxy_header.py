"""An application that answers each connection with its PROXY header: ``python -m tests.programs.proxy_header PORT``.

The answer is hexadecimal, from the command byte on (section 2.2 of the specification); then the connection is closed.
"""

from __future__ import annotations

import asyncio
import sys


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read one header, write what it says."""
    head = await reader.readexactly(16)
    writer.write((head[12:] + await reader.readexactly(int.from_bytes(head[14:]))).hex().encode())
    writer.close()
    await writer.wait_closed()


async def main(port: int) -> None:
    """Serve on loopback until it is killed."""
    server = await asyncio.start_server(answer, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
