"""The client of this package as a test peer: the command line and the JSON lines of quiche-peer."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from intermediate_server.client.hosts import split_server
from intermediate_server.engine import ClientTls, Command, ConnectConfig, Engine, Event
from intermediate_server.engine.bridge import Bridge


class Peer:
    """One connection, driven from stdin."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._conn = 0
        self.closed = asyncio.Event()

    def event(self, event: Event) -> None:
        """Tell the test."""
        match event:
            case Event.Connected(conn=conn):
                self._conn = conn
                _emit("connected")
            case Event.ConnectFailed(reason=reason):
                _emit("closed", error={"by": "local", "reason": reason})
                self.closed.set()
            case Event.Datagrams(data=data):
                for datagram in data:
                    _emit("datagram", hex=datagram.hex())
            case Event.ObservedAddress(address=(host, port)):
                _emit("observed_frame", address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
            case Event.Inspected() as now:
                _emit(
                    "stats",
                    mtu=now.mtu,
                    max_datagram=now.max_datagram,
                    rtt_us=now.rtt_us,
                    sent=now.sent_packets,
                    lost=now.lost_packets,
                )
            case Event.Closed(cause=cause, code=code, reason=reason):
                _emit("closed", error={"by": cause, "code": code, "reason": reason})
                self.closed.set()

    def command(self, command: dict[str, Any]) -> None:
        """Do as the test says."""
        match command:
            case {"send_hex": text}:
                self._bridge.submit(Command.SendDatagram(self._conn, bytes.fromhex(text)))
                _emit("sent", ok=True, count=1, max_writable=None, error=None)
            case {"send_many": {"hex": text, "count": count}}:
                self._bridge.submit(Command.SendDatagrams(self._conn, [bytes.fromhex(text)] * count))
                _emit("sent", ok=True, count=count, max_writable=None, error=None)
            case {"stats": True}:
                self._bridge.submit(Command.Inspect(self._conn))
            case _:
                _emit("done", command=str(command), error="unknown")


def _emit(name: str, **fields: object) -> None:
    print(json.dumps({"event": name, **fields}), flush=True)


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile")
    parser.add_argument("--server", required=True)
    parser.add_argument("--ca-cert", type=Path, required=True)
    parser.add_argument("--cert", type=Path)
    parser.add_argument("--key", type=Path)
    options = parser.parse_args()
    tls = ClientTls(
        ca_pem=options.ca_cert.read_bytes(),
        certificate_pem=options.cert and options.cert.read_bytes(),
        key_pem=options.key and options.key.read_bytes(),
    )
    engine = Engine()
    bridge = Bridge(engine)
    peer = Peer(bridge)
    bridge.start(peer.event)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    config = ConnectConfig(remote=split_server(options.server), server_name="ztna-server", tls=tls)
    bridge.submit(Command.Connect(1, config))
    closed = asyncio.create_task(peer.closed.wait())
    while not closed.done():
        reading = asyncio.create_task(commands.readline())
        await asyncio.wait({reading, closed}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done() or not (line := reading.result()):
            break
        peer.command(json.loads(line))


if __name__ == "__main__":
    asyncio.run(_main())
