"""Agents and connectors as commands, and the ways in that they open."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress

from intermediate_server.testing import Application, Program, Relay
from intermediate_server.testing.applications import PAGE
from intermediate_server.testing.programs import PATIENCE
from intermediate_server.types import Role


def url(application: Application, kind: str = "tcp") -> str:
    return "{}://{}:{}".format(kind, *application.address)


async def fetch(address: str) -> bytes:
    """The page behind a local port. Raises ``OSError`` and ``IncompleteReadError``."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            return await reader.readexactly(len(PAGE))
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def echo_datagrams(address: str, *payloads: bytes) -> None:
    """Send each through a local port to an echo, and see it come back."""
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(PATIENCE)
        peer.connect((host, int(port)))
        for payload in payloads:
            peer.send(payload)
            assert await asyncio.to_thread(peer.recv, 2000) == payload


async def fetch_until_served(address: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                assert await fetch(address) == PAGE
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.02)
            else:
                return


async def run(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """A program to its end: exit status and everything it printed."""
    program = await Program.start(*arguments, env={**os.environ, **(env or {})})
    async with asyncio.timeout(PATIENCE):
        code = await program.process.wait()
    await program.terminate()
    return code, "\n".join(str(line["event"]) for line in program.lines[:-1])


def trust(relay: Relay, role: Role, name: str, services: list[str]) -> list[str]:
    certificate, key = relay.issue(role, name, services)
    server = "{}:{}".format(*relay.address)
    files = ["--ca-cert", str(relay.ca_file), "--cert", str(certificate), "--key", str(key)]
    return ["--server", server, "--server-name", "ztna-server", *files]
