"""The notation of forwards, maps and backends: ``tcp:127.0.0.1:8080=web``, ``10.100.0.2=web``,
``web=tcp://host:80``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from intermediate_server.errors import ConfigError

MAX_SERVICE_BYTES = 255
"""A service id has one length byte on the wire (docs/protocol.md section 2.3)."""

_BROADCAST = IPv4Address("255.255.255.255")
_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
_HOST_PORT = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s\[\]:/@]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class ForwardSpec:
    """A local port whose traffic goes to a service."""

    protocol: str
    host: str
    port: int
    service: str

    @classmethod
    def parse(cls, text: str) -> ForwardSpec:
        """From ``tcp:127.0.0.1:8080=web`` or ``udp:...``; port 0 takes any free one. Raises ``ConfigError``."""
        expected = f"{text!r} is not a forward such as tcp:127.0.0.1:8080=web"
        local, equals, service = text.partition("=")
        protocol, _, address = local.partition(":")
        if not equals or protocol not in ("tcp", "udp"):
            raise ConfigError(expected)
        host, port = _host_port(address, expected, lowest=0)
        try:
            ip_address(host)
        except ValueError:
            raise ConfigError(f"{expected}: {host!r} is not an IP address of this host") from None
        return cls(protocol, host, port, check_service(service))


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A local address that is mapped to a service."""

    address: IPv4Address | IPv6Address
    service: str

    @classmethod
    def parse(cls, text: str) -> MapSpec:
        """From ``10.100.0.2=web``. Raises ``ConfigError``."""
        host, _, service = text.partition("=")
        try:
            address = ip_address(host.strip("[]"))
        except ValueError:
            raise ConfigError(f"{text!r} is not a map such as 10.100.0.2=web") from None
        unfit = (
            address.is_unspecified
            or address.is_loopback
            or address.is_multicast
            or address.is_link_local
            or address == _BROADCAST
            or (isinstance(address, IPv6Address) and address.ipv4_mapped is not None)
        )
        if unfit:
            raise ConfigError(f"{text!r}: {address} cannot stand for a service; map an address such as 10.100.0.2")
        return cls(address, check_service(service))


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """A service and the application behind it."""

    service: str
    protocol: str
    targets: tuple[tuple[str, int], ...]
    """Host (a name or an address) and port of each, in the order they are tried."""
    proxy: bool = False
    """Whether each TCP connection begins with a header of the PROXY protocol, version 2."""

    @property
    def urls(self) -> list[str]:
        """The URL of each target, as it is written."""
        scheme = f"{self.protocol}+proxy" if self.proxy else self.protocol
        hosts = ((f"[{host}]" if ":" in host else host, port) for host, port in self.targets)
        return [f"{scheme}://{host}:{port}" for host, port in hosts]

    @classmethod
    def parse(cls, text: str) -> BackendSpec:
        """From ``web=tcp://127.0.0.1:8080``; several backends are separated by commas. Raises ``ConfigError``."""
        specs = cls.parse_all(text)
        if len(specs) != 1:
            raise ConfigError(f"{text!r} has backends of two protocols; parse_all() reads both")
        return specs[0]

    @classmethod
    def parse_all(cls, text: str) -> tuple[BackendSpec, ...]:
        """The same, for a service of one protocol or both: ``dns=udp://10.0.0.53:53,tcp://10.0.0.53:53``.

        ``tcp+proxy://`` in place of ``tcp://`` tells the application the agent's inner address.
        """
        expected = f"{text!r} is not a service such as web=tcp://127.0.0.1:8080 or dns=udp://10.0.0.53:53"
        service, equals, urls = text.partition("=")
        targets: dict[str, list[tuple[str, int]]] = {}
        for url in urls.split(","):
            scheme, _, address = url.strip().partition("://")
            targets.setdefault(scheme, []).append(_host_port(address, expected, lowest=1))
        if not equals or not targets.keys() <= {"tcp", "tcp+proxy", "udp"} or max(map(len, targets.values())) > 16:
            raise ConfigError(expected + ", with at most 16 backends of each protocol")
        if targets.keys() >= {"tcp", "tcp+proxy"}:
            raise ConfigError(f"{text!r} has tcp:// and tcp+proxy:// backends: write all of them one way")
        name = check_service(service)
        return tuple(
            cls(name, scheme.removesuffix("+proxy"), tuple(found), proxy=scheme.endswith("+proxy"))
            for scheme, found in targets.items()
        )


def check_service(name: str) -> str:
    """The name, if it can be a service of ours: without A-Z, as certificates have it. Raises ``ConfigError``."""
    if any(letter.isspace() or letter == "," for letter in name):
        raise ConfigError(
            f"{name[:80]!r} is not a service name: it has a space or a comma in it; name several services one by one"
        )
    if not name or len(name.encode(errors="surrogatepass")) > MAX_SERVICE_BYTES or not name.isprintable():
        raise ConfigError(f"{name[:80]!r} is not a service name: 1 to 255 bytes of printable text")
    lower = name.translate(_LOWER)
    if lower != name:
        # Certificates and rules take the two for one, the relay's table of services does not.
        raise ConfigError(f"{name[:80]!r} has capital letters: write the service as {lower[:80]!r}, at both ends")
    return name


def _host_port(text: str, expected: str, *, lowest: int) -> tuple[str, int]:
    match = _HOST_PORT.fullmatch(text)
    if match is None or not lowest <= int(match["port"]) < 65_536:
        raise ConfigError(expected)
    host = match["v6"] or match["host"]
    if match["v6"] is not None:
        try:
            IPv6Address(host)
        except ValueError:
            raise ConfigError(expected) from None
    return host, int(match["port"])
