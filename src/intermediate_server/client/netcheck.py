"""Netcheck: measures the way to a relay by its addresses, NAT, times, MTU, clock and registration."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import IPv4Address, ip_address
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from intermediate_server.client.agent import AgentOptions, inner_addresses
from intermediate_server.client.connection import Connection
from intermediate_server.client.engine import ClientEngine
from intermediate_server.client.hosts import split_server
from intermediate_server.client.probe import Behind, look_behind
from intermediate_server.client.reasons import of_end, of_refusal, read_identity
from intermediate_server.client.relay import Relay, addresses
from intermediate_server.client.tasks import background
from intermediate_server.errors import CertificateError, ConnectError, ConnectionClosed, RegistrationError
from intermediate_server.pki import identity_of
from intermediate_server.types import Identity, Role

PING = 0.2
"""Seconds between two PINGs."""
LOOK = 0.02
"""Seconds between two looks at the round-trip time, few enough to see each sample."""
SETTLE = 1.6
"""Seconds between two looks at the MTU, until it grows no more."""
_FILLER = b"\x45"
_TIME = "%Y-%m-%dT%H:%M:%SZ"
REPORT = 5.0
"""Longest wait, in seconds, for the relay to report our address."""


@dataclass(slots=True)
class Family:
    """The results over IPv4 or IPv6."""

    address: str
    """The relay's address."""
    reachable: bool = False
    handshake_ms: float | None = None
    rtt_ms: float | None = None
    """Smoothed round-trip time (RFC 9002 section 5.3)."""
    jitter_ms: float | None = None
    """Mean difference between two successive round-trip times."""
    mtu: int | None = None
    """Largest UDP payload known to pass."""
    observed: list[str] = field(default_factory=list)
    """Our address as the relay sees it, from each of two local ports."""
    local_ports: list[int | None] = field(default_factory=list)
    """The two ports; None for a port that is not known."""
    observed_frame: str | None = None
    """The same from a standard OBSERVED_ADDRESS frame."""
    nat: str | None = None
    error: str | None = None
    cause: str | None = None
    """The kind of error: that of a ``ConnectError``, or ``closed`` after the handshake."""
    unreachable: dict[str, str] = field(default_factory=dict)
    """Unreachable addresses of the relay, with the reason."""


@dataclass(slots=True)
class Report:
    """All results."""

    server: str
    ipv4: Family | None = None
    ipv6: Family | None = None
    clock: str = ""
    """The local clock against the validity of our own certificate and of the relay's."""
    registration: str | None = None
    """The outcome of the registration."""
    service: str | None = None
    """The application behind the service of an agent's registration."""
    served: bool | None = None
    """Whether that application serves clients; None when it was not probed."""
    verdict: str = ""
    ok: bool = False

    def plain(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A registration to try."""

    role: Role
    service: str


async def check(relay: Relay, wanted: Wanted | None = None) -> Report:
    """Measure the way to a relay; takes some seconds. Never raises for a bad network."""
    report = Report(relay.server)
    report.clock = _clock(relay)
    try:
        known = await addresses(relay)
    except ConnectError as error:
        report.verdict = str(error)
        return report
    async with ClientEngine() as engine, background(engine.until_failed()):
        for version in (4, 6):
            found = [each for each in known if ip_address(each[0]).version == version]
            if found:
                failures = await _probe(engine, relay, found) if len(found) > 1 else {}
                address = next((each for each in found if each[0] not in failures), found[0])
                family, certificate = await _family(engine, relay, address)
                family.unreachable = {host: why for host, why in failures.items() if host != address[0]}
                setattr(report, f"ipv{version}", family)
                if certificate is not None:
                    report.clock = _clock(relay, certificate)
        families = [each for each in (report.ipv4, report.ipv6) if each is not None]
        best = next((each for each in families if each.reachable and each.error is None), None)
        if best is not None and wanted is not None:
            report.registration, behind = await _registration(engine, relay, best, wanted)
            if behind is not None:
                report.service, report.served = str(behind), behind.ok
    _judge(report, best)
    return report


async def _probe(engine: ClientEngine, relay: Relay, found: Sequence[tuple[str, int]]) -> dict[str, str]:
    """The addresses at which no handshake succeeds, with the reason."""

    async def probe(address: tuple[str, int]) -> str | None:
        try:
            await (await engine.open(relay, at=address)).close()
        except ConnectError as error:
            return str(error)
        return None

    reasons = await asyncio.gather(*map(probe, found))
    return {host: why for (host, _), why in zip(found, reasons, strict=True) if why is not None}


async def _family(engine: ClientEngine, relay: Relay, address: tuple[str, int]) -> tuple[Family, bytes | None]:
    """The results over one IP version, and the relay's certificate."""
    family, certificate = Family(address[0]), None
    loop = asyncio.get_running_loop()
    begun = loop.time()
    try:
        async with _connected(engine, relay, address, family) as first:
            family.reachable = True
            family.handshake_ms = round(1000 * (loop.time() - begun), 3)
            certificate = next(iter(first.certificates), None)
            await _observe(family, first)
            async with _connected(engine, relay, address, family) as second:
                await _observe(family, second)
            family.nat = _nat(family)
            await _measure(family, first)
    except ConnectError as error:
        family.error, family.cause = str(error), error.cause
    except ConnectionClosed as error:
        family.error, family.cause = str(error), "closed"
    return family, certificate


@asynccontextmanager
async def _connected(
    engine: ClientEngine, relay: Relay, address: tuple[str, int], family: Family | None = None
) -> AsyncIterator[Connection]:
    before = _local_ports()
    connection = await engine.open(replace(relay, keep_alive=PING), at=address)
    try:
        if family is not None:
            new = _local_ports() - before
            family.local_ports.append(new.pop() if len(new) == 1 else None)
        yield connection
    except ConnectionClosed:
        if connection.closed is None:
            raise
        raise ConnectionClosed(of_end(connection.closed, relay.shown)) from None
    finally:
        await connection.close()


async def _observe(family: Family, connection: Connection) -> None:
    try:
        async with asyncio.timeout(REPORT):
            family.observed.append(str(await connection.wait_observed()))
    except TimeoutError:
        return
    frame = connection.observed_address_frame
    family.observed_frame = None if frame is None else str(frame)


def _nat(family: Family) -> str | None:
    """The kind of NAT that two observations from one host by one relay show.

    A mapping that depends on the destination stays unseen: that takes one local port and two destinations.
    """
    if len(family.observed) < 2:
        return None
    seen = [observed.rpartition(":") for observed in family.observed]
    hosts = {host.strip("[]") for host, _, _ in seen}
    if len(hosts) > 1:
        return "behind a NAT with several public addresses"
    host = hosts.pop()
    if host == _local_host(family.address):
        return f"no NAT, seen as {host}"
    pairs = [(local, int(port)) for local, (_, _, port) in zip(family.local_ports, seen, strict=True)]
    ports = ", ".join(f"{local or 'unknown'} as {port}" for local, port in pairs)
    kept = all(local == port for local, port in pairs)
    return (
        f"behind a NAT, seen as {host}, local ports {ports}: it {'keeps' if kept else 'changes'} ports;"
        " whether it maps by destination cannot be told with one relay"
    )


def _local_ports() -> set[int]:
    """The ports of this process's UDP sockets, since the engine does not report a connection's port."""
    ports = set()
    for entry in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            copy = os.dup(int(entry.name))
            try:
                found = socket.socket(fileno=copy)
            except OSError:  # no socket
                os.close(copy)
                continue
            with found:
                if found.type == socket.SOCK_DGRAM and found.family in (socket.AF_INET, socket.AF_INET6):
                    ports.add(found.getsockname()[1])
    return ports


def _local_host(remote: str) -> str:
    """The local address of packets to ``remote``; nothing is sent."""
    with socket.socket(socket.AF_INET6 if ":" in remote else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((remote, 9))
        return str(probe.getsockname()[0])


async def _measure(family: Family, connection: Connection) -> None:
    """Round-trip times, and the MTU once it stays the same."""
    loop = asyncio.get_running_loop()
    begun = filled = loop.time()
    smoothed: list[int] = []
    mtu = 0
    while True:
        state = await connection.inspect()
        if not smoothed or smoothed[-1] != state.rtt_us:
            smoothed.append(state.rtt_us)
        if loop.time() - begun > SETTLE:
            if state.mtu == mtu:
                break
            mtu, begun = state.mtu, loop.time()
        if loop.time() - filled > PING:
            filled = loop.time()
            # The relay drops it. On a narrow path it is lost: QUIC begins with a size that it assumes to pass.
            connection.send_raw(_FILLER * connection.datagram_limit)
        await asyncio.sleep(LOOK)
    family.mtu = mtu
    family.rtt_ms = round(smoothed[-1] / 1000, 3)
    family.jitter_ms = jitter(smoothed)


def jitter(smoothed: Sequence[int]) -> float | None:
    """Mean difference, in milliseconds, of successive round-trip times; None with too few of them.

    The engine reports smoothed times only, which hide most of the jitter. Each moves by an eighth towards the next
    sample (RFC 9002 section 5.3), so the samples can be computed from them.
    """
    samples = [after + 7 * (after - before) for before, after in pairwise(smoothed)]
    steps = [abs(after - before) for before, after in pairwise(samples)]
    return round(mean(steps) / 1000, 3) if steps else None


async def _registration(engine: ClientEngine, relay: Relay, best: Family, wanted: Wanted) -> tuple[str, Behind | None]:
    """The outcome of a registration, and the application behind an agent's service."""
    behind = None
    name = f"{wanted.role.value} for service {wanted.service!r}"
    try:
        async with _connected(engine, relay, (best.address, _port(relay))) as connection:
            await connection.register(wanted.role, wanted.service)
            if wanted.role is Role.AGENT:
                behind = await look_behind(connection, wanted.service, _inner(relay))
    except RegistrationError as error:
        return f"refused as {name}: {error}; {of_refusal(wanted.role, wanted.service, relay.identity_file)}", None
    except (ConnectError, ConnectionClosed) as error:
        return f"not possible as {name}: {error}", None
    if wanted.role is Role.CONNECTOR:
        return f"registered as {name}, whose traffic came here and not to its connector for that moment", None
    return f"registered as {name}", behind


def _inner(relay: Relay) -> IPv4Address:
    """An inner address for the probe; the relay translates it if it leases us another one."""
    return next(each for each in inner_addresses(AgentOptions(relay=relay)) if isinstance(each, IPv4Address))


def _clock(relay: Relay, certificate: bytes | None = None) -> str:
    """The local clock against both certificates: the commonest reason for a refused handshake."""
    now = datetime.now(UTC)
    known = [] if relay.identity_file is None else [("our certificate", read_identity(relay.identity_file))]
    if certificate is not None:
        with suppress(CertificateError):
            known.append(("the relay's certificate", identity_of(certificate)))
    told = "; ".join(_validity(now, *each) for each in known) or "no certificate to compare with"
    return f"{now:{_TIME}}; {told}"


def _validity(now: datetime, whose: str, identity: Identity) -> str:
    if now < identity.not_before:
        return f"{whose} begins later ({identity.not_before:{_TIME}}): set the clock"
    if now >= identity.not_after:
        return f"{whose} has ended ({identity.not_after:{_TIME}}): renew it, or set the clock"
    return f"{whose} is good until {identity.not_after:{_TIME}}"


def _judge(report: Report, best: Family | None) -> None:
    if best is None:
        families = [each for each in (report.ipv4, report.ipv6) if each is not None]
        why = "; ".join(dict.fromkeys(each.error for each in families if each.error)) or "no address"
        causes = {each.cause for each in families}
        if causes <= {"silent"}:
            report.verdict = f"not reachable: {why}; is UDP to this port let through, and does a relay listen there?"
        elif causes <= {"silent", "port_closed", "other"}:
            report.verdict = f"not reachable: {why}"
        else:
            report.verdict = f"reachable, but {why}"
    elif report.registration is not None and not report.registration.startswith("registered"):
        report.verdict = f"reachable, but {report.registration}"
    elif report.served is False:
        report.verdict = f"reachable, {report.registration}; {report.service}"
    else:
        report.ok = True
        done = f", {report.registration}" if report.registration else ""
        report.verdict = (
            f"reachable: round trip {best.rtt_ms:g} ms, MTU {best.mtu}, {best.nat or 'no address reported'}{done}"
        )


def _port(relay: Relay) -> int:
    return split_server(relay.server)[1]
