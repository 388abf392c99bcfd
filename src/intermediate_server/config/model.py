"""Every setting of the server, with its default, its range and the sentence that ``--help`` prints for it.

The command-line flags, the environment variables (``ZTNA_`` and the name in capitals) and the keys of the TOML file
(kebab-case, as the flags; snake_case is accepted too) are all made from this one class. Durations are seconds here
and sizes bytes. Settings of the engine have the names and defaults of ``ListenConfig`` in ``_engine.pyi``.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated

from intermediate_server.config.basics import BasicSettings
from intermediate_server.config.callout import Callout
from intermediate_server.config.fields import (
    ACCESS,
    DIRECT,
    INNER,
    LIMITS,
    OPERATION,
    POOL_V4,
    POOL_V6,
    TABLES,
    TIMES,
    Direct,
    LogFormat,
    LogLevel,
    PrivateCandidates,
    Switch,
)
from intermediate_server.config.host import default_state_dir, host_has_ipv6
from intermediate_server.config.schema import check, setting
from intermediate_server.config.values import (
    Address,
    Duration,
    FilePath,
    Hosts,
    Integer,
    IPAddress,
    Pool4,
    Pool6,
    Reads,
    Size,
    Tables,
    read_address,
)


def milliseconds(seconds: float) -> int:
    """A duration of ``Settings`` as the engine takes it."""
    return round(seconds * 1000)


def _read_source4(value: object) -> IPAddress:
    return _source(value, 4)


def _read_source6(value: object) -> IPAddress:
    return _source(value, 6)


def _source(value: object, version: int) -> IPAddress:
    address = read_address(value)
    if address.version != version:
        raise ValueError(f"{address} is not an IPv{version} address")
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        raise ValueError(f"{address} cannot be the source of a packet")
    return address


class Settings(BasicSettings):
    """The settings of ``intermediate-server serve``, checked; immutable, so that a reload is a new one."""

    idle_timeout: Duration = setting(
        TIMES, "DURATION", 30.0, "A connection without any packet for this long is closed.", low=1, high=3600
    )
    handshake_timeout: Duration = setting(
        TIMES, "DURATION", 10.0, "A handshake not complete after this long is dropped.", low=0.1, high=120
    )
    registration_timeout: Duration = setting(
        TIMES,
        "DURATION",
        10.0,
        "A connection that has registered nothing for this long since its handshake is closed.",
        low=0.1,
        high=3600,
    )
    drain_grace: Duration = setting(
        TIMES, "DURATION", 5.0, "Time from SIGTERM or SIGINT to the end of the process at the latest.", low=0, high=300
    )
    retry_token_lifetime: Duration = setting(
        TIMES, "DURATION", 15.0, "A Retry token older than this is worthless.", low=1, high=300
    )
    cid_lifetime: Duration = setting(
        TIMES, "DURATION", 300.0, "Connection ids issued by the server are replaced after this long.", low=1, high=86400
    )
    stall_timeout: Duration = setting(
        TIMES,
        "DURATION",
        3.0,
        "A connector that was sent packets and acknowledged nothing for this long is passed over for another.",
        low=0.1,
        high=60,
    )
    lease_grace: Duration = setting(
        TIMES,
        "DURATION",
        300.0,
        "Inner addresses beside its own are kept this long for an identity that left; then they rest for 3 hours.",
        low=0,
        high=86400,
    )

    max_connections: Integer = setting(
        LIMITS, "COUNT", 20_000, "Connections at once; more are refused.", low=1, high=1_000_000
    )
    connections_per_source: Integer = setting(
        LIMITS,
        "COUNT",
        1024,
        "Connections at once from one source, an IPv4 address or IPv6 /56; more are closed after their handshake.",
        low=1,
        high=1_000_000,
    )
    connections_per_identity: Integer = setting(
        LIMITS,
        "COUNT",
        256,
        "Connections at once with one public key; more are closed after their handshake.",
        low=1,
        high=1_000_000,
    )
    memory_budget: Size | None = setting(
        LIMITS,
        "SIZE",
        None,
        "Memory that connections are fitted into at the start; without it that of the machine or its cgroup.",
        low=64 << 20,
        high=1 << 46,
    )
    max_half_open: Integer = setting(
        LIMITS,
        "COUNT",
        1024,
        "Handshakes in progress at once, of one source a sixteenth at most; more are dropped.",
        low=1,
        high=65536,
    )
    handshakes_per_source: Integer = setting(
        LIMITS,
        "COUNT",
        100,
        "Handshakes a second from one source, an IPv4 address or IPv6 /56.",
        low=1,
        high=1_000_000,
    )
    handshake_burst_per_source: Integer = setting(
        LIMITS,
        "COUNT",
        400,
        "Handshakes one source may start at once before its rate counts.",
        low=1,
        high=1_000_000,
    )
    services_per_connection: Integer = setting(
        LIMITS, "COUNT", 64, "Services one connection may register.", low=1, high=4096
    )
    control_per_connection: Integer = setting(
        LIMITS, "COUNT", 64, "Registration messages of one connection that may wait at once.", low=1, high=4096
    )
    send_queue_bytes: Size = setting(
        LIMITS,
        "SIZE",
        256 << 10,
        "DATAGRAMs waiting to be sent to one connection; beyond it new ones are dropped.",
        low=16 << 10,
        high=64 << 20,
    )
    receive_queue_bytes: Size = setting(
        LIMITS,
        "SIZE",
        1 << 20,
        "DATAGRAMs received from one connection and not yet forwarded; filled only while the engine is late.",
        low=16 << 10,
        high=64 << 20,
    )
    outbox_capacity: Integer = setting(
        LIMITS,
        "COUNT",
        65_536,
        "Events from the engine that may wait for the control plane; beyond it no new handshakes are taken.",
        low=1024,
        high=16 << 20,
    )

    inner_addresses: Switch = setting(
        INNER,
        "auto|off",
        "auto",
        "Give every agent its own inner address, or pass packets untouched and find the way back by flow.",
    )
    inner_pool_v4: Pool4 = setting(INNER, "NETWORK", POOL_V4, "IPv4 pool of inner addresses, /8 to /30.")
    inner_pool_v6: Pool6 = setting(INNER, "NETWORK", POOL_V6, "IPv6 pool of inner addresses, /32 to /120.")
    inner_per_agent: Integer = setting(INNER, "COUNT", 4, "Inner addresses one agent may use at once.", low=1, high=64)
    icmp_source_v4: Annotated[IPAddress, Reads(_read_source4)] = setting(
        INNER, "IP", IPv4Address("192.0.0.8"), "Source of the server's ICMP answers inside the tunnel (RFC 7600)."
    )
    icmp_source_v6: Annotated[IPAddress, Reads(_read_source6)] = setting(
        INNER, "IP", IPv6Address("fd64:7a74:6e61:ffff::1"), "Source of the server's ICMPv6 answers inside the tunnel."
    )
    icmp_per_second: Integer = setting(
        INNER, "COUNT", 100, "ICMP answers a second to one connection; 0 answers nothing.", low=0, high=100_000
    )

    direct: Direct = setting(
        DIRECT,
        "all|own|off",
        "all",
        "Who is introduced for a direct path: all that ask, clients of this project only (none asks yet), or nobody.",
    )
    private_candidates: PrivateCandidates = setting(
        DIRECT,
        "same-network|always",
        "same-network",
        "Private addresses are told to a peer that is seen at the same address or at a private one, or to every peer.",
    )
    max_signaling_sessions: Integer = setting(
        DIRECT, "COUNT", 4096, "Introductions under way at once; more are refused.", low=1, high=65_536
    )

    state_dir: FilePath = setting(
        OPERATION,
        "PATH",
        lambda: default_state_dir(os.environ),
        "Directory of the development CA and the server's own keys; by default $STATE_DIRECTORY, "
        "/var/lib/intermediate-server for root, else $XDG_STATE_HOME/intermediate-server.",
    )
    metrics_port: Integer = setting(
        OPERATION, "PORT", 9090, "TCP port of /healthz, /readyz and /metrics; 0 turns them off.", low=0, high=65535
    )
    metrics_bind: Address = setting(
        OPERATION, "IP", IPv4Address("127.0.0.1"), "Address of /healthz, /readyz and /metrics."
    )
    admin_hosts: Hosts = setting(
        OPERATION,
        "NAME",
        (),
        "Host name by which health and metrics may be asked for, repeatable; IP addresses and localhost always are.",
    )
    log_format: LogFormat = setting(OPERATION, "console|json", "console", "Log lines for people, or JSON for machines.")
    log_level: LogLevel = setting(OPERATION, "debug|info|warning|error", "info", "Least severe messages logged.")
    audit_log: FilePath | None = setting(
        OPERATION,
        "FILE|-",
        None,
        "Also write every access decision as one JSON line to this file, appended, or to standard output for -.",
    )

    rules: Tables | None = setting(
        ACCESS,
        TABLES,
        None,
        "Rules about the agents and connectors of services; the first rule that matches decides.",
    )

    callout: Callout | None = setting(
        ACCESS, TABLES, None, "A web service that decides about each registration; see docs/policies.md."
    )

    @check
    def _check_pairs(self) -> None:
        if (self.cert is None) != (self.key is None):
            given, missing = ("cert", "key") if self.key is None else ("key", "cert")
            raise ValueError(f"{given} is set without {missing}; set both, or neither for the development certificate")

    @check
    def _check_access(self) -> None:
        deciding = [name for name in ("rules", "policy", "callout") if getattr(self, name) is not None]
        if len(deciding) > 1:
            raise ValueError(f"{' and '.join(deciding)} are both set; keep one, so that it is plain what decides")
        if self.allow_unnamed_certs and deciding:
            raise ValueError(f"allow-unnamed-certs is set beside {deciding[0]}, which decides alone; remove it")

    def listen_addresses(self, *, ipv6: bool | None = None) -> list[tuple[str, int]]:
        """The addresses to bind, as ``ListenConfig`` takes them: ``bind``, else every address of the host.

        ``[::]`` is a dual-stack socket and takes in every other address, as ``0.0.0.0`` does those of IPv4: bound
        beside it they would fail. ``ipv6`` says whether the host has IPv6; None finds out.
        """
        if not self.bind:
            return [("::" if (host_has_ipv6() if ipv6 is None else ipv6) else "0.0.0.0", self.port)]
        hosts = [str(address) for address in self.bind]
        if "::" in hosts:
            hosts = ["::"]
        elif "0.0.0.0" in hosts:
            hosts = [host for host in hosts if host == "0.0.0.0" or ":" in host]
        return [(host, self.port) for host in hosts]
