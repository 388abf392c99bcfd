"""Independent clients as asyncio objects: what tests need of any ztna-v1 peer, and the one on quiche 0.22.

quiche 0.22 is the library of the agents and connectors in the field; ``tests/peers/quiche-peer`` sets it up as they
do. Its program is driven by JSON lines, one process for each connection, so a test can kill a client as a power
cut would.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import pytest

from tests.integration.packets import Address

T = TypeVar("T")
Profile = Literal["test-client", "connector", "agent-core"]

PATIENCE = 20.0
"""Seconds to wait for what must come; only a failing test waits that long."""

AGENT, CONNECTOR = 0x10, 0x11
ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "tests" / "peers" / "quiche-peer" / "Cargo.toml"
TARGET = ROOT / "target" / "peers"


@dataclass(frozen=True, slots=True)
class Ended:
    """The CONNECTION_CLOSE of the server."""

    application: bool
    code: int
    reason: str


class PeerGoneError(Exception):
    """The peer ended while the test was waiting for it."""


class Inbox:
    """What a peer received, by kind; each in the order of arrival."""

    def __init__(self) -> None:
        self.addresses: asyncio.Queue[bytes] = asyncio.Queue()
        """Address reports, 0x01 and 0x02."""
        self.replies: asyncio.Queue[bytes] = asyncio.Queue()
        """ACK 0x12 and NACK 0x13."""
        self.packets: asyncio.Queue[bytes] = asyncio.Queue()
        """Everything else."""
        self.signals: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        """Payloads of signaling frames, each with its stream."""
        self.stream_ends: asyncio.Queue[tuple[str, int, int]] = asyncio.Queue()
        """How the server ended streams: ``reset`` or ``stop``, stream and code."""
        self.frames: asyncio.Queue[str] = asyncio.Queue()
        """Standard OBSERVED_ADDRESS frames, of a stack that knows them."""

    def put(self, data: bytes) -> None:
        """File one DATAGRAM."""
        match data[:1]:
            case b"\x01" | b"\x02":
                self.addresses.put_nowait(data)
            case b"\x12" | b"\x13":
                self.replies.put_nowait(data)
            case _:
                self.packets.put_nowait(data)


class WirePeer(ABC):
    """A client that speaks ztna-v1, whatever its QUIC stack."""

    def __init__(self) -> None:
        self.inbox = Inbox()
        self._gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Set, never failed, when nothing more will be received."""

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Send one DATAGRAM. Raises ``AssertionError`` when the stack refuses it."""

    async def send_all(self, datagrams: Sequence[bytes]) -> None:
        """Send DATAGRAMs in this order."""
        for data in datagrams:
            await self.send(data)

    @abstractmethod
    async def port(self) -> int:
        """The port of its socket, known otherwise than by the report that is tested."""

    @abstractmethod
    async def rebind(self) -> Address:
        """Go on from a new local port, as behind a NAT that rebinds; returns it, after the host if that is known."""

    @abstractmethod
    async def largest(self) -> int:
        """Bytes of the largest DATAGRAM that it can send."""

    @abstractmethod
    async def ended(self) -> Ended:
        """How the server ended the connection."""

    async def register(self, kind: int, service: bytes) -> bytes:
        """Register as ``AGENT`` or ``CONNECTOR`` and return the server's reply."""
        await self.send(registration(kind, service))
        return await self.reply()

    async def observed(self) -> Address:
        """The address of the next report from the server."""
        return read_report(await self._next(self.inbox.addresses, "address report"))

    async def frame(self) -> str:
        """The address in the next standard OBSERVED_ADDRESS frame, of a stack that knows them."""
        return await self._next(self.inbox.frames, "OBSERVED_ADDRESS frame")

    async def reply(self) -> bytes:
        """The next ACK or NACK."""
        return await self._next(self.inbox.replies, "ACK or NACK")

    async def packet(self) -> bytes:
        """The next DATAGRAM that is neither report nor reply."""
        return await self._next(self.inbox.packets, "packet")

    async def _next(self, queue: asyncio.Queue[T], what: str, *, patience: float = PATIENCE) -> T:
        getting = asyncio.ensure_future(queue.get())
        try:
            return await self._race(getting, what, patience=patience)
        finally:
            getting.cancel()

    async def _race(self, future: asyncio.Future[T], what: str, *, patience: float = PATIENCE) -> T:
        """The future's result, unless the peer ends first or patience does."""
        waiting: set[asyncio.Future[Any]] = {future, self._gone}
        # One turn of the loop lets a get() from a filled queue win over a peer that is gone already.
        await asyncio.sleep(0)
        await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if future.done():
            return future.result()
        if self._gone.done():
            raise PeerGoneError(f"no {what}: {self._gone.result()}")
        raise TimeoutError(f"no {what} within {patience:.0f} s")


@dataclass(frozen=True, slots=True)
class Sent:
    """What quiche said to a send command."""

    ok: bool
    count: int
    max_writable: int | None
    error: str | None


class QuichePeer(WirePeer):
    """One process of quiche-peer, one connection."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__()
        loop = asyncio.get_running_loop()
        self._process = process
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.happenings: dict[str, asyncio.Queue[dict[str, Any]]] = {
            name: asyncio.Queue() for name in ("frame", "stream_ended", "direct", "direct_datagram")
        }
        """Events that nobody asked for and that may come again, by name."""
        self._milestones: dict[str, asyncio.Future[dict[str, Any]]] = {
            name: loop.create_future() for name in ("started", "connected", "draining", "closed")
        }
        self._reader = loop.create_task(self._read())

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        program: Path | Sequence[str | Path],
        profile: Profile,
        server: Address,
        *,
        ca_file: Path | str | None = None,
        certificate: tuple[Path | str, Path | str] | None = None,
        verify: bool = True,
        bind: str | None = None,
        flags: Sequence[str] = (),
    ) -> AsyncIterator[Self]:
        """Run a client while the block runs; it is killed at the end, as the clients in the field never close.

        ``program`` may be the words of a command that speaks the same lines; ``flags`` are passed on as they are.
        """
        words = [program] if isinstance(program, Path) else program
        host = f"[{server[0]}]" if ":" in server[0] else server[0]
        arguments = ["--profile", profile, "--server", f"{host}:{server[1]}"]
        if ca_file is not None:
            arguments += ["--ca-cert", str(ca_file)]
        if certificate is not None:
            arguments += ["--cert", str(certificate[0]), "--key", str(certificate[1])]
        if not verify:
            arguments.append("--no-verify-peer")
        if bind is not None:
            arguments += ["--bind", bind]
        process = await asyncio.create_subprocess_exec(
            *words,
            *arguments,
            *flags,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        peer = cls(process)
        try:
            yield peer
        finally:
            await peer.kill()

    async def kill(self) -> None:
        """End the process without a CONNECTION_CLOSE. Safe to repeat."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._reader

    async def connected(self) -> dict[str, Any]:
        """The event of the completed handshake: ``server_params``, ``alpn``, ``certificate``, ``max_writable``."""
        return await self._milestone("connected")

    async def local(self) -> Address:
        """The address the socket was first bound to; the host is the wildcard unless ``bind`` was given."""
        return read_address((await self._milestone("started"))["local"])

    async def port(self) -> int:
        return (await self.local())[1]

    async def largest(self) -> int:
        largest: int = (await self.connected())["max_writable"]
        return largest

    async def ended(self) -> Ended:
        error = await self.draining()
        return Ended(error["application"], error["code"], error["reason"])

    async def draining(self) -> dict[str, Any]:
        """The server's CONNECTION_CLOSE: ``application``, ``code``, ``reason``."""
        error: dict[str, Any] = (await self._milestone("draining"))["error"]
        return error

    async def closed(self, *, patience: float = PATIENCE) -> dict[str, Any] | None:
        """Why the connection ended; None when this side closed it without an error."""
        error: dict[str, Any] | None = (await self._milestone("closed", patience=patience))["error"]
        return error

    async def send(self, data: bytes) -> None:
        """Send one DATAGRAM."""
        sent = await self.try_send(data)
        assert sent.ok, f"{len(data)} bytes: {sent.error}, at most {sent.max_writable}"

    async def try_send(self, data: bytes) -> Sent:
        """Send one DATAGRAM and say what quiche thought of it."""
        return await self._sent({"send_hex": data.hex()})

    async def send_many(self, data: bytes, count: int) -> Sent:
        """Send the same DATAGRAM ``count`` times."""
        return await self._sent({"send_many": {"hex": data.hex(), "count": count}})

    async def ping(self) -> None:
        """Send a PING frame."""
        await self._done({"ping": True})

    async def echo(self) -> None:
        """Answer inner ICMP and UDP echo from now on."""
        await self._done({"echo": True})

    async def forward(self, application: Address) -> None:
        """Send the payloads of inner UDP packets to ``application`` (IPv4) from now on, and its answers back.

        They bear its address as their inner source, as those of the connectors in the field do.
        """
        await self._done({"forward": f"{application[0]}:{application[1]}"})

    async def new_cid(self) -> None:
        """Issue one NEW_CONNECTION_ID, as the clients in the field do."""
        await self._done({"new_cid": True})

    async def close(self) -> None:
        """Close with application code 0."""
        await self._done({"close": True})

    async def rebind(self) -> Address:
        """Go on from a new local port, as behind a NAT that rebinds; returns it."""
        return read_address((await self._ask({"rebind": True}, "rebound"))["local"])

    async def stats(self) -> dict[str, Any]:
        """Packet counts, connection ids, round-trip time."""
        return await self._ask({"stats": True}, "stats")

    async def _sent(self, command: dict[str, Any]) -> Sent:
        event = await self._ask(command, "sent")
        return Sent(ok=event["ok"], count=event["count"], max_writable=event["max_writable"], error=event["error"])

    async def _done(self, command: dict[str, Any]) -> None:
        event = await self._ask(command, "done")
        assert event["error"] is None, f"{event['command']}: {event['error']}"

    async def _ask(self, command: dict[str, Any], expected: str) -> dict[str, Any]:
        """Commands are answered in their order, so the next answer is to this one."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await self._process.stdin.drain()
        event = await self._next(self._answers, f"answer to {command}")
        assert event["event"] == expected, event
        return event

    async def _milestone(self, name: str, *, patience: float = PATIENCE) -> dict[str, Any]:
        return await self._race(self._milestones[name], name, patience=patience)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        errors = asyncio.ensure_future(self._process.stderr.read())
        last = "ended"
        async for line in self._process.stdout:
            event = json.loads(line)
            name = event["event"]
            if name == "datagram":
                self.inbox.put(bytes.fromhex(event["hex"]))
            elif name == "observed_frame":
                self.inbox.frames.put_nowait(event["address"])
            elif name in self.happenings:
                self.happenings[name].put_nowait(event)
            elif name in self._milestones:
                self._milestones[name].set_result(event)
                last = line.decode().strip()
            else:
                self._answers.put_nowait(event)
        said = (await errors).decode(errors="replace").strip()
        self._gone.set_result(f"{last}; {said}" if said else last)


@pytest.fixture(scope="session")
def quiche_program() -> Path:
    """The built quiche-peer; cargo builds it when it is missing or older than its sources (minutes, once)."""
    given = os.environ.get("QUICHE_PEER")
    if given:
        return Path(given)
    for tool in ("cargo", "cmake"):
        if shutil.which(tool) is None:
            pytest.skip(f"quiche-peer needs {tool} to build")
    command = ["cargo", "build", "--release", "--locked", "--quiet", "--manifest-path", str(MANIFEST)]
    environment = os.environ | {"CARGO_TARGET_DIR": str(TARGET)}
    built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return TARGET / "release" / "quiche-peer"


def registration(kind: int, service: bytes) -> bytes:
    """A registration DATAGRAM."""
    return bytes([kind, len(service)]) + service


def ack(service: bytes) -> bytes:
    """The reply to a registration that is granted."""
    return bytes([0x12, 0x00, len(service)]) + service


def nack(status: int, service: bytes) -> bytes:
    """The reply to a registration that is not."""
    return bytes([0x13, status, len(service)]) + service


def to_service(service: bytes, packet: bytes) -> bytes:
    """A service-routed DATAGRAM (0x2F)."""
    return bytes([0x2F, len(service)]) + service + packet


def read_report(data: bytes) -> Address:
    """The address in a report, which must have exactly the length of its form."""
    if data[0] == 0x01:
        assert len(data) == 7, data.hex()
        return str(ipaddress.IPv4Address(data[1:5])), int.from_bytes(data[5:7], "big")
    assert data[0] == 0x02, data.hex()
    assert len(data) == 19, data.hex()
    return str(ipaddress.IPv6Address(data[1:17])), int.from_bytes(data[17:19], "big")


def read_address(text: str) -> Address:
    """``host:port`` or ``[host]:port``."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
