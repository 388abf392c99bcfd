"""The settings of ``intermediate-server agent`` and ``connector``; flags, file and variables as for the server."""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from typing import Annotated

from intermediate_server.config.fields import (
    INNER,
    NETWORK,
    OPERATION,
    POOL_V4,
    POOL_V6,
    TIMES,
    TRUST,
    LogFormat,
    LogLevel,
)
from intermediate_server.config.schema import Model, check, setting
from intermediate_server.config.values import (
    Address,
    Addresses,
    Duration,
    FilePath,
    Flag,
    Hosts,
    Integer,
    Pool4,
    Pool6,
    Reads,
    quote,
    read_texts,
)

Texts = Annotated[tuple[str, ...], Reads(read_texts)]


def _read_server(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[^\s/@]{1,260}", value):
        raise ValueError(f"{quote(value)} is not host:port")
    return value


_OF_A_SERVER = ("ca_cert", "cert", "key", "server_name", "no_verify_peer")
"""Settings that say nothing without a server."""

Server = Annotated[str, Reads(_read_server)]


class RelaySettings(Model):
    """Where a relay is, and what to prove to it; immutable."""

    server: Server | None = setting(NETWORK, "HOST:PORT", None, "The relay; without a port it is 4433.")
    profile: FilePath | None = setting(
        NETWORK,
        "PATH",
        None,
        "Profile, in place of relay, CA, certificate and key; the usual one of the role where no relay is named.",
    )
    ca_cert: FilePath | None = setting(TRUST, "PATH", None, "CA that the relay's certificate must chain to, PEM.")
    cert: FilePath | None = setting(TRUST, "PATH", None, "Our certificate chain, PEM, leaf first.")
    key: FilePath | None = setting(TRUST, "PATH", None, "The private key of our certificate, PEM.")
    readable_keys: Flag = setting(
        TRUST,
        "",
        False,
        "Take a private key that everyone on this host may read, as volumes of secrets give it to a container.",
    )
    server_name: str | None = setting(
        TRUST, "NAME", None, "Name that the relay's certificate must carry; by default the host of --server."
    )
    no_verify_peer: Flag = setting(
        TRUST, "", False, "Accept any relay. An attacker in between can read and change everything: for tests only."
    )

    @check
    def _check(self) -> None:
        if self.server is None:
            given = [name for name in _OF_A_SERVER if getattr(self, name)]
            if given and self.profile is not None:
                raise ValueError(f"profile and {given[0].replace('_', '-')} exclude each other: a profile has its own")
            if given:
                raise ValueError("server is not set: name the relay with --server HOST:PORT")
            return
        if self.profile is not None:
            raise ValueError("profile and server exclude each other: a profile names its relay")
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together; set both, or neither to be anonymous")
        if self.ca_cert is None and not self.no_verify_peer:
            raise ValueError("ca-cert is not set: name the CA of the relay's certificate with --ca-cert")


class ClientSettings(RelaySettings):
    """The settings that agent and connector share. Durations are in seconds."""

    rotate_key: Flag = setting(
        TRUST,
        "",
        False,
        "Make a new key at each renewal of the profile's certificate; the inner address and the quota change with it.",
    )
    keep_alive: Duration = setting(
        TIMES,
        "DURATION",
        1.5,
        "Silence after which a PING is sent: how soon a relay that was killed and came back is noticed.",
        low=0.5,
        high=25,
    )
    idle_timeout: Duration = setting(
        TIMES, "DURATION", 15.0, "Silence after which the connection is given up and made anew.", low=3, high=600
    )
    handshake_timeout: Duration = setting(
        TIMES, "DURATION", 10.0, "Time each try to connect may take.", low=0.5, high=60
    )
    inner_pool_v4: Pool4 = setting(INNER, "NETWORK", POOL_V4, "The relay's pool of inner IPv4 addresses.")
    inner_pool_v6: Pool6 = setting(INNER, "NETWORK", POOL_V6, "The relay's pool of inner IPv6 addresses.")
    tun: Flag = setting(INNER, "", False, "Use a Linux TUN interface; needs CAP_NET_ADMIN.")
    tun_name: str = setting(INNER, "NAME", "ztna%d", "Name of the interface; %d is a number that the kernel chooses.")
    status_socket: FilePath | None = setting(
        OPERATION, "PATH", None, "Unix socket that the status command asks; by default in the runtime directory."
    )
    metrics_port: Integer = setting(
        OPERATION, "PORT", 0, "TCP port of /metrics and /healthz; 0 turns them off.", low=0, high=65535
    )
    metrics_bind: Address = setting(OPERATION, "IP", IPv4Address("127.0.0.1"), "Address of /metrics and /healthz.")
    metrics_hosts: Hosts = setting(
        OPERATION,
        "NAME",
        (),
        "Host name by which they may be asked for, repeatable; IP addresses and localhost always are.",
    )
    log_format: LogFormat = setting(OPERATION, "WORD", "console", "console (for people) or json (for machines).")
    log_level: LogLevel = setting(OPERATION, "WORD", "info", "debug, info, warning or error.")


class AgentSettings(ClientSettings):
    """The settings of an agent."""

    forward: Texts = setting(
        NETWORK,
        "SPEC",
        (),
        "Local port whose traffic goes to a service, repeatable: tcp:127.0.0.1:8080=web, udp:127.0.0.1:5300=dns.",
    )
    service: Texts = setting(
        NETWORK, "NAME", (), "Service to register for, repeatable; forwards and maps imply theirs."
    )
    map: Texts = setting(
        INNER, "SPEC", (), "With --tun: address that stands for a service, repeatable: 10.100.0.2=web."
    )
    default_service: str | None = setting(
        INNER,
        "NAME",
        None,
        "With --tun: service for packets to any other address, from where any address may reach this host.",
    )
    hosts: FilePath | None = setting(
        INNER,
        "PATH",
        None,
        "With --tun: hosts file that gets the name SERVICE.ztna of each service, such as /etc/hosts.",
    )
    address: Addresses = setting(
        INNER, "IP", (), "With --tun: our inner address; by default the one that the relay leases to our key."
    )


class ConnectorSettings(ClientSettings):
    """The settings of a connector."""

    service: Texts = setting(
        NETWORK,
        "SPEC",
        (),
        "Service and the application behind it, repeatable: web=tcp://127.0.0.1:8080, "
        "dns=udp://10.0.0.53:53,tcp://10.0.0.53:53; tcp+proxy:// begins each connection with a header of the PROXY "
        "protocol; with --tun only its name.",
    )


class NetcheckSettings(RelaySettings):
    """The settings of netcheck."""

    agent: str | None = setting(NETWORK, "SERVICE", None, "Try to register for it, and send a packet through.")
    connector: str | None = setting(
        NETWORK,
        "SERVICE",
        None,
        "Try to register as its connector. With the certificate of one that runs, this takes its traffic until it "
        "registers again.",
    )

    @check
    def _check_role(self) -> None:
        if self.agent is not None and self.connector is not None:
            raise ValueError("--agent, --connector: name one")
