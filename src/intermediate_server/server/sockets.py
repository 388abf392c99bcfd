"""UDP sockets that outlive the process: those of a ``.socket`` unit, and those that systemd keeps over a restart.

Packets of a restart wait in such a socket, and no sender hears that the port is closed. sd_listen_fds(3) says how they
arrive.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress

import structlog

from intermediate_server.config import Settings
from intermediate_server.engine import EngineError
from intermediate_server.notify import ServiceManager
from intermediate_server.types import Address

FIRST = 3
"""The first descriptor that is handed over."""
KEPT = "udp-"
"""The beginning of the names of our own sockets; any other name is of a ``.socket`` unit."""

_log = structlog.get_logger()


def take_sockets(
    settings: Settings, manager: ServiceManager, env: MutableMapping[str, str] = os.environ
) -> list[socket.socket]:
    """The sockets to serve; none where the engine is to bind its own.

    Those of a ``.socket`` unit take the place of ``bind`` and ``port``. Otherwise each address gets the socket that
    systemd has kept for it, or a new one for systemd to keep. Raises ``EngineError``.
    """
    handed = _handed_over(env)
    of_unit = [each for name, each in handed if not name.startswith(KEPT)]
    kept = {name: each for name, each in handed if name.startswith(KEPT)}
    taken = of_unit
    if of_unit:
        _log.info("The socket unit of systemd says where to listen, in place of bind and port", sockets=len(of_unit))
    elif manager.present:
        for host, port in settings.listen_addresses():
            name = f"{KEPT}{host.replace(':', '_')}-{port}"
            found = kept.pop(name, None)
            if found is None:
                found = _bind(host, port)
                manager.keep(name, found.fileno())
            taken.append(found)
    for name, each in kept.items():
        each.close()
        manager.forget(name)
    return taken


def _handed_over(env: MutableMapping[str, str]) -> list[tuple[str, socket.socket]]:
    """The UDP sockets that systemd hands over, with their names; the variables leave the environment."""
    process, count, names = (env.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if process != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    called = names.split(":")
    for at in range(int(count)):
        descriptor = FIRST + at
        with suppress(OSError):
            os.set_inheritable(descriptor, False)
            each = socket.socket(fileno=descriptor)
            if each.type == socket.SOCK_DGRAM and each.family in (socket.AF_INET, socket.AF_INET6):
                found.append((called[at] if at < len(called) else "", each))
                continue
            each.close()
        _log.warning("A descriptor that systemd hands over is no UDP socket and not used", descriptor=descriptor)
    return found


def _bind(host: str, port: int) -> socket.socket:
    """A bound socket, as the engine makes them: an IPv6 wildcard takes IPv4 too."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise EngineError(
            f"cannot bind {Address.of((host, port))}: {error.strerror} (os error {error.errno})"
        ) from error
    return made
