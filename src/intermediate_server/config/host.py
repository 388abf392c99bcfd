"""Defaults that depend on the host: the state directory, and IPv6."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
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
