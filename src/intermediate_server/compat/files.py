"""The older server's JSON file: its default paths, and the settings of its keys."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from intermediate_server.errors import ConfigError

FILES = (Path("/etc/ztna/intermediate.json"), Path("intermediate.json"))
"""Default paths of the older server. They are only read when named, since their defaults for certificates differ."""

_KEYS = {
    "port": "port",
    "bind_addr": "bind",
    "external_ip": "external_ip",
    "cert_path": "cert",
    "key_path": "key",
    "ca_cert_path": "ca_cert",
    "disable_retry": "disable_retry",
    "metrics_port": "metrics_port",
}
_AUTH = ("verify_peer", "require_client_cert")


def is_old(path: Path) -> bool:
    """Whether a file's name makes it one of the older server."""
    return path.suffix.lower() == ".json"


def unread_file() -> Path | None:
    """A file that the older server would have read, when this one has read none."""
    return next((path for path in FILES if os.access(path, os.R_OK)), None)


def settings_of(path: Path, data: Mapping[str, Any], read_flag: Callable[[object], bool]) -> dict[str, Any]:
    """Settings from the older server's keys; its comments, nulls and empty texts say nothing.

    Its ``verify_peer`` without ``require_client_cert`` asks for a certificate and lets clients without one in, which
    is ``client_auth = optional`` here. A file that mentions neither gets this server's default, ``required``.
    ``read_flag`` reads a yes or no and raises ``ValueError``. Raises ``ConfigError``.
    """
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key.startswith("_") or value is None or value == "" or key in _AUTH:
            continue
        values[_KEYS.get(key, key)] = value
    given: dict[str, bool] = {}
    for key in _AUTH:
        if data.get(key) is not None:
            try:
                given[key] = read_flag(data[key])
            except ValueError as error:
                raise ConfigError(f"{path}: {key}: {error}") from None
    if given:
        required, verify = given.get("require_client_cert", False), given.get("verify_peer", True)
        if required and not verify:
            raise ConfigError(f"{path}: require_client_cert, verify_peer: contradict each other; repair one")
        values["client_auth"] = "required" if required else "optional" if verify else "off"
    return values
