"""Hosts as written in settings, and their addresses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address
from typing import Any

import idna

from intermediate_server.config.values import DEFAULT_PORT
from intermediate_server.errors import ConnectError


def split_server(server: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port``; without a port it is 4433. Raises ``ConnectError``."""
    host, colon, port = server.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):
        host, port = server, str(DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or len(port) > 5 or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ConnectError(f"{server[:300]!r} is not host:port")
    return host, int(port)


def plain_host(host: str) -> str:
    """The normal form of a host, for look-ups and comparison with certificates. Raises ``ConnectError``.

    Lower case, without the dot at the end, international names as A-labels (UTS 46, RFC 5891), addresses in their
    short form without a zone.
    """
    try:
        return str(ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    try:
        name = host.lower() if host.isascii() else idna.encode(host, uts46=True).decode()
    except UnicodeError as error:
        raise ConnectError(f"{host[:300]!r} is not a host name: {error}") from None
    return name.removesuffix(".")


async def look_up(host: str, port: int) -> list[tuple[str, int]]:
    """Every address of a host, families in turn, as the engine takes them. Raises ``ConnectError``."""
    try:
        address = ip_address(host)
    except ValueError:
        pass
    else:
        # An address needs no look-up thread, and a silent name server may hold all of those.
        return [(_numeric(str(address)), port)]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(plain_host(host), port, type=socket.SOCK_DGRAM)
    except (OSError, ValueError) as error:  # ValueError: a name that no DNS message can hold
        raise ConnectError(f"{host[:300]!r} cannot be resolved: {error}") from error
    hosts = list(dict.fromkeys((family, _of_socket(address)) for family, _, _, _, address in found))
    first = [item for item in hosts if item[0] == hosts[0][0]]
    second = [item for item in hosts if item[0] != hosts[0][0]]
    turns = [item for pair in zip(first, second, strict=False) for item in pair]
    turns += first[len(second) :] + second[len(first) :]
    return [(host, port) for _, host in turns]


async def look_up_all(places: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Every address of several hosts, those of the first one first. Raises ``ConnectError`` when none has one."""
    found: dict[tuple[str, int], None] = {}
    errors: list[BaseException] = []
    for answer in await asyncio.gather(*(look_up(*place) for place in places), return_exceptions=True):
        if isinstance(answer, ConnectError):
            errors.append(answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found |= dict.fromkeys(answer)
    if not found:
        raise ConnectError("; ".join(map(str, errors)))
    return list(found)


def _of_socket(address: tuple[Any, ...]) -> str:
    """The host of a socket address, its zone as a number (RFC 4007 section 11.2)."""
    host, zone = str(address[0]).partition("%")[0], address[3] if len(address) == 4 else 0
    return f"{host}%{zone}" if zone else host


def _numeric(address: str) -> str:
    """An address with the name of its zone made a number. Raises ``ConnectError``."""
    host, percent, zone = address.partition("%")
    if not percent:
        return host
    if not IPv6Address(host).is_link_local:
        raise ConnectError(f"{address} has a zone, which only link-local addresses have: write {host}")
    try:
        if zone.isascii() and zone.isdigit():
            socket.if_indextoname(int(zone[:20]))
            return address
        return f"{host}%{socket.if_nametoindex(zone)}"
    except (OSError, OverflowError, ValueError):
        raise ConnectError(f"{address}: this host has no interface {zone!r}") from None
