"""The host: where state is kept by default, whether there is IPv6, and the addresses of its interfaces."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from fcntl import ioctl
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path


def default_state_dir(env: Mapping[str, str], *, root: bool | None = None) -> Path:
    """The default state directory: systemd's, else the usual one of this user.

    ``$STATE_DIRECTORY`` (systemd) wins; root uses ``/var/lib/intermediate-server``; others use
    ``$XDG_STATE_HOME/intermediate-server`` or ``~/.local/state/intermediate-server``. Raises ``ValueError`` when the
    user has no home directory.
    """
    given = env.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    if os.geteuid() == 0 if root is None else root:
        return Path("/var/lib/intermediate-server")
    state = env.get("XDG_STATE_HOME", "")
    if state.startswith("/"):
        return Path(state) / "intermediate-server"
    try:
        home = Path(env.get("HOME") or Path.home())
    except RuntimeError:
        raise ValueError("this user has no home directory; name a state directory") from None
    return home / ".local" / "state" / "intermediate-server"


def host_has_ipv6() -> bool:
    """Whether an IPv6 UDP socket can be bound here, as a dual-stack listener needs."""
    if not socket.has_ipv6:
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def interface_addresses() -> Iterator[IPv4Address | IPv6Address]:
    """The addresses that Linux lists for its interfaces; none if it does not."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
                yield IPv4Address(answer[20:24])
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines():
            yield IPv6Address(int(line.split()[0], 16))
