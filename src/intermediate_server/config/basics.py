"""The settings of network, trust and joining, the first of :class:`~intermediate_server.config.model.Settings`."""

from __future__ import annotations

from typing import Annotated

from intermediate_server.config.fields import JOINING, NETWORK, TRUST, ClientAuth
from intermediate_server.config.schema import Model, setting
from intermediate_server.config.values import (
    Addresses,
    Command,
    Duration,
    FilePath,
    Flag,
    Integer,
    IPAddress,
    Places,
    Reads,
    Reference,
    Size,
    read_address,
)


def _read_external(value: object) -> IPAddress:
    address = read_address(value)
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{address} is not an address anyone can dial")
    return address


class BasicSettings(Model):
    """Where the server is, what it proves and trusts, and who may join."""

    port: Integer = setting(
        NETWORK, "PORT", 4433, "UDP port that agents and connectors dial; 0 takes any free one.", low=0, high=65535
    )
    bind: Addresses = setting(
        NETWORK, "IP", (), "Address to listen on, repeatable; without it all of the host's, IPv6 and IPv4."
    )
    external_ip: Annotated[IPAddress, Reads(_read_external)] | None = setting(
        NETWORK,
        "IP",
        None,
        "Address the server is reached at behind a 1:1 NAT: for the development certificate, log and status.",
    )
    disable_retry: Flag = setting(
        NETWORK,
        "",
        False,
        "Do not make clients prove their source address by a stateless Retry (RFC 9000 section 8.1.2) first.",
    )
    initial_mtu: Integer = setting(
        NETWORK,
        "BYTES",
        1350,
        "UDP payload assumed to pass before path MTU discovery has spoken.",
        low=1200,
        high=65527,
    )
    socket_buffer_bytes: Size = setting(
        NETWORK,
        "SIZE",
        4 << 20,
        "Send and receive buffer asked of the kernel for each socket.",
        low=64 << 10,
        high=1 << 30,
    )

    cert: FilePath | None = setting(
        TRUST,
        "PATH",
        None,
        "Server certificate chain, PEM, leaf first; without it the server makes a development certificate.",
    )
    key: FilePath | None = setting(
        TRUST, "PATH", None, "Private key of the server certificate, PEM, readable by its owner only."
    )
    ca_cert: FilePath | None = setting(
        TRUST,
        "PATH",
        None,
        "CA that client certificates must chain to, PEM; without it the development CA of the state directory.",
    )
    readable_keys: Flag = setting(
        TRUST,
        "",
        False,
        "Take a private key that everyone on this host may read, as volumes of secrets give it to a container.",
    )
    client_auth: ClientAuth = setting(
        TRUST,
        "required|optional|off",
        "required",
        "Client certificates: demanded, verified when given, or never asked for.",
    )
    crl: FilePath | None = setting(
        TRUST,
        "PATH",
        None,
        "Revoked client certificates: CRLs signed by the client CA, PEM or DER; beside it crl.pem of the development "
        "CA, where that one is trusted.",
    )
    deny_list: FilePath | None = setting(
        TRUST, "PATH", None, "Client certificates to refuse: SHA-256 fingerprints, one a line, # begins a remark."
    )
    policy: Reference | None = setting(
        TRUST,
        "MODULE:ATTR",
        None,
        "Access policy in Python; without it and without rules the names in client certificates decide.",
    )
    allow_unnamed_certs: Flag = setting(
        TRUST,
        "",
        False,
        "For a migration: without rules and policy, let certificates without any .ztna name register everything.",
    )

    joining: Flag = setting(
        JOINING, "", True, "Let devices join by tokens, and renew their certificates, where this server can issue."
    )
    public_address: Places = setting(
        JOINING,
        "HOST[:PORT]",
        (),
        "Where clients reach this server, repeatable, for tokens and profiles; without a port it is the server's own. "
        "Without any, external-ip or an address of this host.",
    )
    certificate_lifetime: Duration = setting(
        JOINING,
        "DURATION",
        7 * 86400.0,
        "Life of the certificates of devices that join; they renew themselves at half of it.",
        low=60,
        high=398 * 86400,
    )
    renew_grace: Duration = setting(
        JOINING,
        "DURATION",
        30 * 86400.0,
        "A certificate that expired this long ago may still renew itself, but not connect.",
        low=0,
        high=365 * 86400,
    )
    join_signer: Command = setting(
        JOINING,
        "WORD",
        (),
        "Command that signs in place of the development CA, its words one after the other: CSR on standard input, PEM "
        "on standard output.",
    )
    joins_per_source: Integer = setting(
        JOINING,
        "COUNT",
        1,
        "Joins and renewals a second from one source, an IPv4 address or IPv6 /56.",
        low=1,
        high=1_000_000,
    )
    join_burst_per_source: Integer = setting(
        JOINING, "COUNT", 20, "Joins and renewals of one source at once before its rate counts.", low=1, high=1_000_000
    )
    joins_per_second: Integer = setting(
        JOINING, "COUNT", 20, "Joins and renewals a second from everywhere together.", low=1, high=1_000_000
    )
