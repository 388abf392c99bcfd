"""A Linux TUN interface: made, addressed and routed by netlink; it always ends with its file descriptor."""

from __future__ import annotations

import errno
import fcntl
import importlib
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from socket import AF_INET, AF_INET6
from typing import Any

import structlog

from intermediate_server.errors import TUN, TunnelError, needs

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

MIN_MTU_V6 = 1280
"""IPv6 needs links of at least this many bytes (RFC 8200 section 5)."""
MIN_MTU_V4 = 576

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_IFF_UP = 0x1
_NAME_BYTES = 15

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of an interface: its addresses and routes."""

    name: str
    """Its name, at most 15 bytes; ``%d`` in it is a number that the kernel chooses."""
    addresses: Sequence[IPAddress]
    """Its own addresses."""
    routes: Sequence[IPNetwork]
    """The routes into it."""
    pools: Sequence[IPNetwork] = ()
    """The pools of agents' inner addresses; no other interface should have an address there."""


def check_installed() -> None:
    """Raises ``MissingExtra`` unless the package for interfaces is there."""
    with needs(TUN):
        importlib.import_module("pyroute2")


class Tun:
    """An interface that exists until :meth:`close`, or the end of the process."""

    def __init__(self, plan: Plan) -> None:
        """Make it; it carries nothing before the first :meth:`set_mtu`.

        Raises ``TunnelError`` when the kernel refuses, for want of CAP_NET_ADMIN for instance.
        """
        check_installed()
        self.plan = plan
        self.mtu = 0
        self._refused = False
        """Whether the kernel has refused IPv6."""
        self._lock = threading.Lock()
        """Held while the interface is changed."""
        self.fd, self.name = _open(plan.name)
        try:
            self.index = _index(self.name)
        except BaseException:
            os.close(self.fd)
            raise

    def set_mtu(self, mtu: int) -> None:
        """Carry packets of up to ``mtu`` bytes; the first time, bring the interface up with its addresses and routes.

        IPv6 is left out while the MTU is below 1280, and where the kernel has none. Raises ``TunnelError``.
        """
        mtu = max(mtu, MIN_MTU_V4)
        if mtu != self.mtu:
            with self._lock, self._kernel() as kernel:
                if self.mtu == 0:
                    self._compare_pools(kernel)
                self.mtu = mtu
                self._complete(kernel)

    def restore(self) -> list[str]:
        """Put back addresses and routes that another program removed; returns them in words.

        Raises ``TunnelError`` when that fails or the interface is gone.
        """
        if self.mtu == 0:
            return []
        with self._lock, self._kernel() as kernel:
            return self._complete(kernel)

    def check_route_to(self, relay: str) -> None:
        """Raises ``TunnelError`` when packets to the relay's own address would enter the tunnel that they carry."""
        from pyroute2 import NetlinkError  # noqa: PLC0415  see _kernel

        if self.mtu == 0:
            return
        with self._kernel() as kernel:
            try:
                found = kernel.route("get", dst=relay)[0].get("oif")
            except NetlinkError:
                return  # no route at all: the next packet says so
        if found == self.index:
            raise TunnelError(
                f"the route to the relay {relay} leads into {self.name}, so the tunnel would carry itself: first add a"
                f" route beside it, such as 'ip route add {relay} via GATEWAY', and then the one into {self.name}"
            )

    @contextmanager
    def _kernel(self) -> Iterator[Any]:
        """A netlink socket; errors of the kernel become ``TunnelError``."""
        from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415  slow to import, and only TUN needs it

        try:
            with IPRoute() as kernel:
                yield kernel
        except (NetlinkError, OSError) as error:
            raise TunnelError(f"cannot set up {self.name}: {_reason(error)}") from error

    def _complete(self, kernel: Any) -> list[str]:
        """Add the missing parts of the plan to the interface; returns them."""
        link = kernel.link("get", index=self.index)[0]
        lacked = []
        if not link["flags"] & _IFF_UP:
            lacked.append("the flag 'up'")
        if link.get("mtu") != self.mtu:
            lacked.append(f"the MTU {self.mtu}")
        if lacked:
            kernel.link("set", index=self.index, mtu=self.mtu, state="up")
        lacked += self._add(kernel, 4)
        if self.mtu >= MIN_MTU_V6 and not self._refused:
            lacked += self._add(kernel, 6)
        return lacked

    def _add(self, kernel: Any, version: int) -> list[str]:
        """Add the missing addresses and routes of an IP version; returns them."""
        from pyroute2 import NetlinkError  # noqa: PLC0415  see _kernel

        family = AF_INET if version == 4 else AF_INET6
        there = {ip_address(item.get("address")) for item in kernel.get_addr(family=family, index=self.index)}
        lacked = [item for item in self.plan.addresses if item.version == version and item not in there]
        try:
            for address in lacked:
                kernel.addr("replace", index=self.index, address=str(address), prefixlen=address.max_prefixlen)
        except NetlinkError as error:
            if version == 4:
                raise
            self._refused = True
            _log.warning(f"Interface {self.name} carries no IPv6: the kernel refuses it", reason=str(error))
            return []
        routed = {
            ip_network((item.get("dst"), item["dst_len"]))
            for item in kernel.get_routes(family=family, oif=self.index)
            if item.get("dst") is not None
        }
        unrouted = [item for item in self.plan.routes if item.version == version and item not in routed]
        for route in unrouted:
            try:
                kernel.route("add", dst=str(route), oif=self.index)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
                raise TunnelError(
                    f"{route} is routed elsewhere already; end the program that does, or remove that route"
                ) from error
        return [*(f"the address {item}" for item in lacked), *(f"the route {item}" for item in unrouted)]

    def _compare_pools(self, kernel: Any) -> None:
        """Log each address of another interface inside the agents' pools, such as Tailscale's."""
        for item in kernel.get_addr():
            if item["index"] == self.index:
                continue
            address = ip_address(item.get("address"))
            for pool in self.plan.pools:
                if address in pool:
                    other = kernel.link("get", index=item["index"])[0].get("ifname")
                    _log.warning(
                        f"Interface {other} has {address}, which lies in {pool}, where agents have their addresses:"
                        " packets of one network may be lost to the other, as Tailscale drops what comes from there;"
                        " run one of them on this host, or give the relay other pools (--inner-pool-v4)"
                    )

    def close(self) -> None:
        """Remove the interface, its addresses and routes. Safe to repeat."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _open(name: str) -> tuple[int, str]:
    encoded = name.encode()
    if not 0 < len(encoded) <= _NAME_BYTES or b"/" in encoded:
        raise TunnelError(f"{name!r} is not the name of an interface: 1 to 15 bytes without a slash")
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise TunnelError(f"cannot open /dev/net/tun: {_reason(error)}") from error
    try:
        made = fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", encoded, _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        os.close(fd)
        raise TunnelError(f"cannot make the interface {name}: {_reason(error)}") from error
    return fd, made[:16].rstrip(b"\0").decode()


def _index(name: str) -> int:
    from socket import if_nametoindex  # noqa: PLC0415  beside its only use

    try:
        return if_nametoindex(name)
    except OSError as error:
        raise TunnelError(f"the interface {name} has vanished: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    code = getattr(error, "errno", None) or getattr(error, "code", None)
    if code in (errno.EPERM, errno.EACCES):
        return "not permitted; run with CAP_NET_ADMIN, or use --forward, which needs no privilege"
    if code == errno.EBUSY:
        return "another program uses it; choose another name with --tun-name"
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return "this kernel has no TUN device; load the module 'tun' or use --forward"
    return os.strerror(code) if isinstance(code, int) else str(error)
