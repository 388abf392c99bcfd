"""Reading a configuration file: TOML, or for migration the JSON of the older Rust server."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intermediate_server.config.values import quote, read_flag
from intermediate_server.errors import ConfigError

MAX_FILE_BYTES = 1 << 20
"""A larger file is refused: no configuration is, and a parser should not be fed one."""

_OLD_KEYS = {
    "port": "port",
    "bind_addr": "bind",
    "external_ip": "external_ip",
    "cert_path": "cert",
    "key_path": "key",
    "ca_cert_path": "ca_cert",
    "disable_retry": "disable_retry",
    "metrics_port": "metrics_port",
}
_OLD_AUTH = ("verify_peer", "require_client_cert")


def read(path: Path) -> dict[str, Any]:
    """Keys and values of a configuration file, not yet checked. Raises ``ConfigError``.

    A name ending in ``.json`` is read as the older server's configuration, anything else as TOML.
    """
    text = _read_text(path)
    try:
        data = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except ValueError as error:
        kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
        reason = str(error).splitlines()[0] if str(error) else "malformed"
        raise ConfigError(f"{path}: not valid {kind}: {ascii(reason[:200])[1:-1]}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds {quote(data)} instead of settings by name")
    return _from_old(path, data) if path.suffix.lower() == ".json" else data


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; name an existing file with --config") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes, which no configuration is")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text at byte {error.start}") from None


def _from_old(path: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from the older server's keys; its comments, nulls and empty texts say nothing.

    Its ``verify_peer`` without ``require_client_cert`` asks for a certificate and lets clients without one in, which
    is ``client_auth = optional`` here. A file that mentions neither gets this server's default, ``required``.
    """
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key.startswith("_") or value is None or value == "" or key in _OLD_AUTH:
            continue
        values[_OLD_KEYS.get(key, key)] = value
    given = {key: _old_flag(path, key, data[key]) for key in _OLD_AUTH if data.get(key) is not None}
    if given:
        required, verify = given.get("require_client_cert", False), given.get("verify_peer", True)
        if required and not verify:
            raise ConfigError(f"{path}: require_client_cert, verify_peer: contradict each other; repair one")
        values["client_auth"] = "required" if required else "optional" if verify else "off"
    return values


def _old_flag(path: Path, key: str, value: object) -> bool:
    try:
        return read_flag(value)
    except ValueError as error:
        raise ConfigError(f"{path}: {key}: {error}") from None
