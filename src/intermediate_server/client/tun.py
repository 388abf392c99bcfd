"""A Linux TUN interface: made, addressed and routed by netlink; gone with its file descriptor, whatever happens."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import structlog

from intermediate_server.errors import EdgeError

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

MIN_MTU_V6 = 1280
"""IPv6 needs links of at least this many bytes (RFC 8200 section 5)."""
MIN_MTU_V4 = 576

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_NAME_BYTES = 15

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Plan:
    """What the interface is to carry."""

    name: str
    """Its name, at most 15 bytes; ``%d`` in it is a number that the kernel chooses."""
    addresses: Sequence[IPAddress]
    """Its own addresses."""
    routes: Sequence[IPNetwork]
    """What is routed into it."""


class Tun:
    """An interface that exists until :meth:`close`, or the end of the process."""

    def __init__(self, plan: Plan) -> None:
        """Make it; it carries nothing before :meth:`set_mtu` has been called once.

        Raises ``EdgeError`` when the kernel, or the lack of CAP_NET_ADMIN, does not let us.
        """
        self.plan = plan
        self.mtu = 0
        self._present: set[int] = set()
        """IP versions whose addresses and routes are there."""
        self._refused = False
        """Whether the kernel has no IPv6 for us."""
        self.fd, self.name = _open(plan.name)
        try:
            self._index = _index(self.name)
        except BaseException:
            os.close(self.fd)
            raise

    def set_mtu(self, mtu: int) -> None:
        """Carry packets of up to ``mtu`` bytes; the first time, bring the interface up with its addresses and routes.

        IPv6 is left out while the MTU is below 1280, and where the kernel has none. Raises ``EdgeError``.
        """
        from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415  slow to import, and only TUN needs it

        mtu = max(mtu, MIN_MTU_V4)
        if mtu == self.mtu:
            return
        try:
            with IPRoute() as kernel:
                kernel.link("set", index=self._index, mtu=mtu, state="up")
                if mtu < MIN_MTU_V6:
                    # The kernel has removed them.
                    self._present.discard(6)
                self._add(kernel, 4)
                if mtu >= MIN_MTU_V6 and not self._refused:
                    self._add(kernel, 6)
        except (NetlinkError, OSError) as error:
            raise EdgeError(f"cannot set up {self.name}: {_reason(error)}") from error
        self.mtu = mtu

    def _add(self, kernel: Any, version: int) -> None:
        """Add the addresses and routes of an IP version, unless they are there."""
        from pyroute2 import NetlinkError  # noqa: PLC0415  see above

        if version in self._present:
            return
        try:
            for address in self.plan.addresses:
                if address.version == version:
                    kernel.addr("replace", index=self._index, address=str(address), prefixlen=address.max_prefixlen)
        except NetlinkError as error:
            if version == 4:
                raise
            self._refused = True
            _log.warning(f"Interface {self.name} carries no IPv6: the kernel refuses it", reason=str(error))
            return
        for route in self.plan.routes:
            if route.version == version:
                try:
                    kernel.route("add", dst=str(route), oif=self._index)
                except NetlinkError as error:
                    if error.code != errno.EEXIST:
                        raise
                    raise EdgeError(
                        f"{route} is routed elsewhere already; end the program that does, or remove that route"
                    ) from error
        self._present.add(version)

    def close(self) -> None:
        """Remove the interface, its addresses and routes. Safe to repeat."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _open(name: str) -> tuple[int, str]:
    encoded = name.encode()
    if not 0 < len(encoded) <= _NAME_BYTES or b"/" in encoded:
        raise EdgeError(f"{name!r} is not the name of an interface: 1 to 15 bytes without a slash")
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise EdgeError(f"cannot open /dev/net/tun: {_reason(error)}") from error
    try:
        made = fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", encoded, _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        os.close(fd)
        raise EdgeError(f"cannot make the interface {name}: {_reason(error)}") from error
    return fd, made[:16].rstrip(b"\0").decode()


def _index(name: str) -> int:
    from socket import if_nametoindex  # noqa: PLC0415  beside its only use

    try:
        return if_nametoindex(name)
    except OSError as error:
        raise EdgeError(f"the interface {name} has vanished: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    code = getattr(error, "errno", None) or getattr(error, "code", None)
    if code in (errno.EPERM, errno.EACCES):
        return "not permitted; run with CAP_NET_ADMIN, or use --forward, which needs no privilege"
    if code == errno.EBUSY:
        return "another program uses it; choose another name with --tun-name"
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return "this kernel has no TUN device; load the module 'tun' or use --forward"
    return os.strerror(code) if isinstance(code, int) else str(error)
