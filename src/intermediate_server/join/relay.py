"""Where a relay is reached, and ``relay.json``: the settings in force, for commands beside a running server.

``token create`` needs what the server was started with; flags and variables of another process are not to be had
otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from intermediate_server.config import Settings
from intermediate_server.config.host import interface_addresses
from intermediate_server.config.values import MAX_SERVERS, read_server, split_place, with_port
from intermediate_server.pki import files
from intermediate_server.pki.development import route_addresses

FILE = "relay.json"

_PATHS = ("cert", "key", "ca_cert", "state_dir")
_NOTED = (
    "port",
    "bind",
    "external_ip",
    "public_address",
    *_PATHS,
    "client_auth",
    "readable_keys",
    "metrics_bind",
    "metrics_port",
    "joining",
    "join_signer",
    "certificate_lifetime",
    "renew_grace",
)


def note(settings: Settings, port: int) -> None:
    """Write the settings in force and the UDP port that is bound. Raises ``CertificateError``."""
    values: dict[str, Any] = {}
    for name in _NOTED:
        value = getattr(settings, name)
        if isinstance(value, tuple):
            values[name] = list(map(str, value))
        elif isinstance(value, Path):
            values[name] = str(value.absolute())
        elif isinstance(value, IPv4Address | IPv6Address):
            values[name] = str(value)
        elif value is not None:
            values[name] = value
    values["port"] = port
    data = json.dumps(values, indent=1).encode() + b"\n"
    path = settings.state_dir / FILE
    if not path.exists() or files.read_file(path, "file") != data:
        files.write_file(path, data, private=True)


def noted(state_dir: Path) -> Settings | None:
    """The settings that the server of a state directory has left; None if there are none that can be read.

    A server of another version, which still runs or has run, may have left others beside those of this one.
    """
    path = state_dir / FILE
    if not path.exists():
        return None
    try:
        values = json.loads(files.read_file(path, "file"))
        known = {name: values[name] for name in Settings.model_fields.keys() & values.keys()}
        return Settings.model_validate({**known, "state_dir": str(state_dir)})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def servers_of(settings: Settings) -> tuple[str, ...]:
    """Where clients reach the relay, as tokens name it; only loopback addresses if there is nothing else."""
    if settings.public_address:
        places = [split_place(place) for place in settings.public_address]
        return _servers((host, port or settings.port) for host, port in places)
    if settings.external_ip is not None:
        return _servers([(str(settings.external_ip), settings.port)])
    bound = [item for item in settings.bind if not item.is_unspecified]
    routed = bound or list(route_addresses())
    every = bound or [*routed, *interface_addresses()]
    for addresses in ([item for item in every if item.is_global], routed, every):
        usable = [item for item in addresses if not (item.is_loopback or item.is_link_local or item.is_unspecified)]
        if usable:
            return _servers((str(item), settings.port) for item in usable)
    return _servers((str(item), settings.port) for item in bound or [IPv4Address("127.0.0.1")])


def is_local(servers: Iterable[str]) -> bool:
    """Whether every one of these servers can be reached from this host only."""
    for server in servers:
        host = split_place(server)[0]
        try:
            if not ip_address(host).is_loopback:
                return False
        except ValueError:
            if host != "localhost":
                return False
    return True


def _servers(places: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(read_server(with_port(host, port)) for host, port in places))[:MAX_SERVERS]
