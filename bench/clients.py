"""Clients driven from Python, for measurements that must know their connections one by one."""

from __future__ import annotations

from bench.certificates import SERVER_NAME, Certificates
from bench.processes import Server
from intermediate_server.client import ClientEngine, Connection

PACKET = bytes.fromhex("4500001c00004000401107ae64400001 0a000005 0009000900080000")
"""An empty UDP packet from 100.64.0.1 to 10.0.0.5, without UDP checksum."""


async def dial(engine: ClientEngine, server: Server, files: Certificates, *, identity: int | None = None) -> Connection:
    """Connect with the certificate of this number, or with none."""
    stem = files.directory / f"client-{identity}"
    return await engine.connect(
        ("127.0.0.1", server.port),
        ca_file=files.ca,
        server_name=SERVER_NAME,
        cert_file=None if identity is None else stem.with_suffix(".pem"),
        key_file=None if identity is None else stem.with_suffix(".key"),
        handshake_timeout=60.0,
    )
