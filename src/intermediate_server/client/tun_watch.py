"""Guards a TUN interface in use, since other programs change addresses, routes and flags."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from intermediate_server.client.tun import Tun
from intermediate_server.errors import TunnelError

SETTLE = 0.1
"""Seconds for which changes are collected before a check."""
RESTORES, WITHIN = 5, 60.0
"""Repairs of the interface, at most, and the seconds they count for; with more another program insists."""

_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40
_RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE = 0x100, 0x400
_GROUPS = _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV6_ROUTE
_READ = 64 << 10

_log = structlog.get_logger()


async def watch(tun: Tun, relay_addresses: Callable[[], Sequence[str]]) -> None:
    """Put back addresses and routes that other programs remove, until cancelled.

    ``relay_addresses`` gives the addresses at which the relay is dialled. Raises ``TunnelError`` when the interface is
    gone, cannot be put right, or would carry the packets to the relay itself.
    """
    loop = asyncio.get_running_loop()
    restored: deque[float] = deque(maxlen=RESTORES)
    with Changes(tun) as changes:
        while True:
            for address in relay_addresses():
                await asyncio.to_thread(tun.check_route_to, address)
            await changes.wait()
            lacked = await asyncio.to_thread(tun.restore)
            if not lacked:
                continue
            taken = ", ".join(lacked)
            if len(restored) == RESTORES and loop.time() - restored[0] < WITHIN:
                raise TunnelError(f"another program keeps taking from {tun.name}: {taken}; end it, or tell it not to")
            restored.append(loop.time())
            _log.warning(f"Put back what another program took from {tun.name}: {taken}")


class Changes:
    """The kernel's messages about an interface, its addresses, and routes into it or in their place."""

    def __init__(self, tun: Tun) -> None:
        from pyroute2.netlink.rtnl.marshal import MarshalRtnl  # noqa: PLC0415  slow to import, and only TUN needs it

        self._index = tun.index
        self._planned = {(str(route.network_address), route.prefixlen) for route in tun.plan.routes}
        self._parse = MarshalRtnl().parse
        self._changed = asyncio.Event()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)

    def __enter__(self) -> Changes:
        self._socket.bind((0, _GROUPS))
        asyncio.get_running_loop().add_reader(self._socket, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    async def wait(self) -> None:
        """Wait until something has changed, and until changes that belong together have come."""
        await self._changed.wait()
        await asyncio.sleep(SETTLE)
        self._changed.clear()

    def _read(self) -> None:
        try:
            for message in self._parse(self._socket.recv(_READ)):
                place = (message.get("dst"), message.get("dst_len"))
                if self._index in (message.get("index"), message.get("oif")) or place in self._planned:
                    self._changed.set()
        except BlockingIOError:
            pass
        except OSError:
            self._changed.set()  # ENOBUFS: messages were lost, and one of them may have been for us
