"""The terms of a join token: what whoever joins by it becomes, from where, how often and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network

from intermediate_server.config.values import show_duration
from intermediate_server.errors import CertificateError
from intermediate_server.pki.names import check_further, check_name, check_services
from intermediate_server.types import Role

Network = IPv4Network | IPv6Network

MAX_USES = 1000
MAX_NETWORKS = 64
SHORTEST_EXPIRY, LONGEST_EXPIRY = timedelta(minutes=1), timedelta(days=30)
SHORTEST_LIFETIME, LONGEST_LIFETIME = timedelta(seconds=60), timedelta(days=398)
SHORTEST_ABSENCE, LONGEST_ABSENCE = timedelta(seconds=60), timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one token. Make them with :func:`terms`, which checks them."""

    role: Role
    services: tuple[str, ...]
    lifetime: timedelta
    """Of each certificate."""
    dns: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    """Further names in the certificate, for rules."""
    name: str | None = None
    """The name of who joins; without it that of its host, behind ``prefix``."""
    prefix: str = ""
    replaces: bool = False
    """A holder of the same name and role ends; without it the join is refused."""
    networks: tuple[Network, ...] = ()
    """From where one may join; empty for anywhere."""
    uses: int = 1
    approve: bool = False
    """A join waits for an operator."""
    ephemeral: timedelta | None = None
    """The identity ends when it was not connected for so long."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token as the relay keeps it, without its secret."""

    id: bytes
    """6 bytes; as text in hex."""
    terms: Terms
    pin: bytes
    """SHA-256 of the certificate that the holder of the token trusts, 32 bytes."""
    used: int
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None

    def state(self, now: datetime) -> str:
        """``live``, ``used``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        if self.used >= self.terms.uses:
            return "used"
        return "live" if now < self.expires_at else "expired"


def terms(
    role: Role,
    services: Sequence[str],
    *,
    lifetime: timedelta,
    dns: Sequence[str] = (),
    uris: Sequence[str] = (),
    name: str | None = None,
    prefix: str = "",
    replaces: bool = False,
    networks: Sequence[str] = (),
    uses: int = 1,
    approve: bool = False,
    ephemeral: timedelta | None = None,
) -> Terms:
    """Checked terms. Raises ``CertificateError``."""
    if name is not None and prefix:
        raise CertificateError("--name, --name-prefix: give one")
    if name is not None:
        check_name(name)
        if uses > 1:
            raise CertificateError("one name cannot be for several devices; use --name-prefix beside --uses")
    if prefix:
        check_name(prefix)
    if replaces and name is None and not prefix:
        raise CertificateError(
            "--replace: say whom, with --name or --name-prefix; whoever joins would choose by the name of its host"
        )
    if not 1 <= uses <= MAX_USES:
        raise CertificateError(f"--uses: {uses} is out of range, 1 to {MAX_USES}")
    check_range("--lifetime", lifetime, SHORTEST_LIFETIME, LONGEST_LIFETIME)
    if ephemeral is not None:
        check_range("--ephemeral", ephemeral, SHORTEST_ABSENCE, LONGEST_ABSENCE)
    if len(networks) > MAX_NETWORKS:
        raise CertificateError(f"--from: {len(networks)} networks are more than the {MAX_NETWORKS} supported")
    checked_dns, checked_uris = check_further(dns, uris)
    return Terms(
        role=role,
        # With names for rules a certificate may do without: then rules say what its holder may do.
        services=check_services(services) if services or not (dns or uris) else (),
        lifetime=lifetime,
        dns=checked_dns,
        uris=checked_uris,
        name=name,
        prefix=prefix,
        replaces=replaces,
        networks=tuple(dict.fromkeys(map(_network, networks))),
        uses=uses,
        approve=approve,
        ephemeral=ephemeral,
    )


def check_range(what: str, value: timedelta, low: timedelta, high: timedelta) -> None:
    """Raise ``CertificateError`` for a duration that is out of range."""
    if not low <= value <= high:
        given, least, most = (show_duration(item.total_seconds()) for item in (value, low, high))
        raise CertificateError(f"{what}: {given} is out of range, {least} to {most}")


def _network(text: str) -> Network:
    try:
        network = ip_network(text)
    except ValueError:
        raise CertificateError(f"--from: {text[:64]!r} is not a network such as 192.0.2.0/24") from None
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is not None and network.prefixlen >= 96:
        return IPv4Network((mapped, network.prefixlen - 96))
    return network
