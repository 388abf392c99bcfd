"""The state of an agent or connector over HTTP: ``/metrics`` in the Prometheus text format 0.0.4, and ``/healthz``.

Both are written here, since agents and connectors do without the packages of a relay's admin address.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from intermediate_server import known_hosts
from intermediate_server.errors import ConnectError

TIMEOUT = 5.0
"""Seconds for a request and its answer."""
MAX_HEAD = 8_192
MAX_REQUESTS = 16
"""Requests answered at once; more are closed."""

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_HOST = re.compile(rb"\r\nhost:[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)", re.IGNORECASE)

Sample = tuple[dict[str, str], float]

_GAUGES = frozenset({"tcp_flows", "udp_flows", "fragment_bytes"})
"""The counters of a tunnel that go up and down."""


def exposition(status: dict[str, Any]) -> str:
    """The status as Prometheus text."""
    return "".join(_families(status))


def _families(status: dict[str, Any]) -> Iterator[str]:
    up = bool(status["connected"]) and not status["silent"]
    yield _family("connected", "gauge", "Whether the relay is connected and answers.", float(up))
    yield _family("connects_total", "counter", "Connections to the relay since the start.", status["connects"])
    services: list[Sample] = [
        ({"service": name}, float(state == "registered")) for name, state in status["services"].items()
    ]
    yield _family("service_up", "gauge", "Whether a service is registered, and what is behind it answers.", services)
    if "certificate_ends" in status:
        end = datetime.fromisoformat(status["certificate_ends"]).replace(tzinfo=UTC).timestamp()
        yield _family("certificate_end_timestamp_seconds", "gauge", "The day on which our certificate ends.", end)
    for key, name, kind, text, unit in (
        ("rtt_ms", "rtt_seconds", "gauge", "Round-trip time to the relay.", 1000),
        ("mtu", "mtu_bytes", "gauge", "Largest QUIC packet of the path.", 1),
        ("sent_packets", "sent_packets_total", "counter", "QUIC packets sent on the present connection.", 1),
        ("lost_packets", "lost_packets_total", "counter", "QUIC packets lost on the present connection.", 1),
        ("sent_bytes", "sent_bytes_total", "counter", "Bytes sent on the present connection.", 1),
        ("received_bytes", "received_bytes_total", "counter", "Bytes received on the present connection.", 1),
    ):
        if key in status:
            yield _family(name, kind, text, status[key] / unit)
    tunnel: dict[str, int] = status.get("tunnel", {})
    drops: list[Sample] = []
    for key, value in tunnel.items():
        reason = key.removeprefix("drop_")
        if reason != key:
            drops.append(({"reason": reason}, value))
        elif key in _GAUGES:
            yield _family(f"tunnel_{key}", "gauge", f"{key.replace('_', ' ')} of the tunnel.", value)
        else:
            yield _family(f"tunnel_{key}_total", "counter", f"{key.replace('_', ' ')} of the tunnel.", value)
    if drops:
        yield _family("tunnel_drops_total", "counter", "Packets dropped by the tunnel.", drops)


def _family(name: str, kind: str, text: str, value: float | list[Sample]) -> str:
    name = f"ztna_client_{name}"
    samples = value if isinstance(value, list) else [({}, value)]
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for labels, number in samples:
        named = ",".join(f'{key}="{_escaped(item)}"' for key, item in labels.items())
        lines.append(f"{name}{{{named}}} {number}" if named else f"{name} {number}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


@asynccontextmanager
async def serving(
    host: str, port: int, names: Collection[str], status: Callable[[], Awaitable[dict[str, Any]]]
) -> AsyncIterator[None]:
    """Answer HTTP at this address; port 0 answers nowhere. Raises ``ConnectError`` when it cannot be bound.

    Requests may be for one of ``names``, and for any IP address and ``localhost``.
    """
    if port == 0:
        yield
        return
    under_way = 0

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal under_way
        under_way += 1
        # So that drain() waits for all of the answer.
        writer.transport.set_write_buffer_limits(0)
        try:
            if under_way <= MAX_REQUESTS:
                async with asyncio.timeout(TIMEOUT):
                    writer.write(await _answer(await reader.readuntil(b"\r\n\r\n"), names, status))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
        finally:
            under_way -= 1
            writer.close()

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        # Its own text has the address in it once more.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConnectError(
            f"cannot serve metrics at {host} port {port}: {reason}; name others with --metrics-port and --metrics-bind"
        ) from error
    server = await asyncio.start_server(respond, sock=listener, limit=MAX_HEAD)
    try:
        yield
    finally:
        server.close()


async def _answer(head: bytes, names: Collection[str], status: Callable[[], Awaitable[dict[str, Any]]]) -> bytes:
    """The response to a request, of which only the head is read."""
    method, _, rest = head.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if not all(known_hosts.is_known(host.decode("latin-1"), names) for host in _HOST.findall(head)):
        code = "421 Misdirected Request"
        body = "ask by an IP address or as localhost; name others in metrics-hosts\n"
    elif method not in (b"GET", b"HEAD"):
        code, body = "405 Method Not Allowed", "GET and HEAD are answered\n"
    elif path == b"/healthz":
        told = await status()
        up = told["connected"] and not told["silent"]
        code, body = ("200 OK", "ok\n") if up else ("503 Service Unavailable", "not connected to the relay\n")
    elif path == b"/metrics":
        code, body = "200 OK", exposition(await status())
    else:
        code, body = "404 Not Found", "/metrics and /healthz are here\n"
    data = body.encode(errors="backslashreplace")
    allow = "Allow: GET, HEAD\r\n" if code.startswith("405") else ""
    lines = (
        f"HTTP/1.1 {code}\r\nContent-Type: {_TEXT}\r\nContent-Length: {len(data)}\r\n{allow}Connection: close\r\n\r\n"
    )
    return lines.encode() + (b"" if method == b"HEAD" else data)
