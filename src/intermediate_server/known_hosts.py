"""Hosts that a request over HTTP may be for.

A page in a browser could read what answers here by DNS rebinding, under a name of its own that leads here; an address
or a name of ours it cannot have.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import ip_address

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]+))(?::[0-9]{1,5})?", re.IGNORECASE)


def is_known(host: str, names: Collection[str]) -> bool:
    """Whether a Host header (RFC 9110 section 7.2) is an IP address, ``localhost`` or one of ``names``."""
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match[1] or match[2].lower()
    try:
        ip_address(name)
    except ValueError:
        return match[2] is not None and (name == "localhost" or name in map(str.lower, names))
    return True
