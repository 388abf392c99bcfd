"""Why a peer can or cannot reach a relay: addresses, NAT, times, MTU, clock and registration, measured from here."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.client.connection import Connection
from intermediate_server.client.engine import ClientEngine, split_server
from intermediate_server.client.relay import Relay, addresses, connect
from intermediate_server.errors import ConnectError, ConnectionClosed, RegistrationError
from intermediate_server.pki import identity_of
from intermediate_server.pki.keys import load_certificates
from intermediate_server.types import Role

PING = 0.2
"""Seconds between two PINGs."""
SAMPLES = 8
"""Round-trip times taken before the MTU is looked at, and looked at again while it grows."""
REPORT = 5.0
"""Longest wait, in seconds, for the relay to report our address."""


@dataclass(slots=True)
class Family:
    """What was found over IPv4 or IPv6."""

    address: str
    """The relay's address."""
    reachable: bool = False
    handshake_ms: float | None = None
    rtt_ms: float | None = None
    """Smoothed round-trip time (RFC 9002 section 5.3)."""
    jitter_ms: float | None = None
    """How far the smoothed round-trip time moved from one PING to another."""
    mtu: int | None = None
    """Largest UDP payload known to pass."""
    observed: list[str] = field(default_factory=list)
    """Our address as the relay sees it, from each of two local ports."""
    observed_frame: str | None = None
    """The same from a standard OBSERVED_ADDRESS frame."""
    nat: str | None = None
    error: str | None = None


@dataclass(slots=True)
class Report:
    """Everything that was found."""

    server: str
    ipv4: Family | None = None
    ipv6: Family | None = None
    clock: str = ""
    """The local clock against the validity of our own certificate."""
    registration: str | None = None
    """What became of the registration that was asked for."""
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
    """Measure all there is to know about the way to a relay; takes some seconds. Never raises for a bad network."""
    report = Report(relay.server)
    report.clock = _clock(relay)
    try:
        known = await addresses(relay)
    except ConnectError as error:
        report.verdict = str(error)
        return report
    async with ClientEngine() as engine:
        for version in (4, 6):
            address = next((each for each in known if ip_address(each[0]).version == version), None)
            if address is not None:
                family = await _family(engine, relay, address)
                setattr(report, f"ipv{version}", family)
        families = [each for each in (report.ipv4, report.ipv6) if each is not None]
        best = next((each for each in families if each.reachable and each.error is None), None)
        if best is not None and wanted is not None:
            report.registration = await _registration(engine, relay, best, wanted)
    _judge(report, best)
    return report


async def _family(engine: ClientEngine, relay: Relay, address: tuple[str, int]) -> Family:
    family = Family(address[0])
    loop = asyncio.get_running_loop()
    begun = loop.time()
    try:
        async with _connected(engine, relay, address) as first:
            family.reachable = True
            family.handshake_ms = round(1000 * (loop.time() - begun), 3)
            await _observe(family, first)
            async with _connected(engine, relay, address) as second:
                await _observe(family, second)
            family.nat = _nat(family)
            await _measure(family, first)
    except (ConnectError, ConnectionClosed) as error:
        family.error = str(error)
    return family


@asynccontextmanager
async def _connected(engine: ClientEngine, relay: Relay, address: tuple[str, int]) -> AsyncIterator[Connection]:
    connection = await connect(engine, replace(relay, keep_alive=PING), address)
    try:
        yield connection
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
    """What two observations from one host by one relay tell of a NAT between them.

    Whether its mapping depends on the destination cannot be seen by one relay.
    """
    if len(family.observed) < 2:
        return None
    hosts = {observed.rpartition(":")[0].strip("[]") for observed in family.observed}
    if len(hosts) > 1:
        return "behind a NAT with several public addresses"
    host = hosts.pop()
    if host == _local_host(family.address):
        return f"no NAT, seen as {host}"
    return f"behind a NAT, seen as {' and '.join(family.observed)}"


def _local_host(remote: str) -> str:
    """The local address that packets to ``remote`` leave from; nothing is sent."""
    with socket.socket(socket.AF_INET6 if ":" in remote else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((remote, 9))
        return str(probe.getsockname()[0])


async def _measure(family: Family, connection: Connection) -> None:
    """Round-trip times, and the MTU once it stops growing."""
    samples: list[float] = []
    mtu = before = 0
    while len(samples) < SAMPLES or (mtu > before and len(samples) < 4 * SAMPLES):
        await asyncio.sleep(PING)
        state = await connection.inspect()
        samples.append(state.rtt_us / 1000)
        if len(samples) % SAMPLES == 0:
            before, mtu = mtu, state.mtu
    family.mtu = mtu
    family.rtt_ms = round(samples[-1], 3)
    family.jitter_ms = round(max(samples[SAMPLES // 2 :]) - min(samples[SAMPLES // 2 :]), 3)


async def _registration(engine: ClientEngine, relay: Relay, best: Family, wanted: Wanted) -> str:
    name = f"{wanted.role.value} for service {wanted.service!r}"
    try:
        async with _connected(engine, relay, (best.address, _port(relay))) as connection:
            await connection.register(wanted.role, wanted.service)
    except RegistrationError as error:
        advice = (
            "the certificate's names and the relay's rules must grant it (pki show, policy explain)"
            if relay.cert_file is not None
            else "no certificate was shown; give --cert and --key, or ask for a rule for anonymous peers"
        )
        return f"refused as {name}: {error}; {advice}"
    except (ConnectError, ConnectionClosed) as error:
        return f"not possible as {name}: {error}"
    return f"registered as {name}"


def _clock(relay: Relay) -> str:
    """The local clock against our own certificate: the commonest reason for a refused handshake."""
    now = datetime.now(UTC)
    text = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    if relay.cert_file is None:
        return f"{text}; no certificate of ours to compare with"
    leaf = identity_of(load_certificates(relay.cert_file)[0].public_bytes(Encoding.DER))
    if now < leaf.not_before:
        return f"{text} is before our certificate begins ({leaf.not_before:%Y-%m-%dT%H:%M:%SZ}): set the clock"
    if now >= leaf.not_after:
        return (
            f"{text} is after our certificate ended ({leaf.not_after:%Y-%m-%dT%H:%M:%SZ}): renew it, or set the clock"
        )
    return f"{text}; our certificate is good until {leaf.not_after:%Y-%m-%dT%H:%M:%SZ}"


def _judge(report: Report, best: Family | None) -> None:
    if best is None:
        families = [each for each in (report.ipv4, report.ipv6) if each is not None]
        why = "; ".join(dict.fromkeys(each.error for each in families if each.error)) or "no address"
        if any(each.reachable for each in families):
            report.verdict = f"reachable, but the relay ends the connection: {why}; does it want another certificate?"
        else:
            report.verdict = f"not reachable: {why}; is UDP to this port let through, and does a relay listen there?"
    elif report.registration is not None and not report.registration.startswith("registered"):
        report.verdict = f"reachable, but {report.registration}"
    else:
        report.ok = True
        done = f", {report.registration}" if report.registration else ""
        report.verdict = (
            f"reachable: round trip {best.rtt_ms:g} ms, MTU {best.mtu}, {best.nat or 'no address reported'}{done}"
        )


def _port(relay: Relay) -> int:
    return split_server(relay.server)[1]
