"""Reading a configuration file: TOML, or for migration the JSON of the older Rust server."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from intermediate_server.compat import files as compat
from intermediate_server.config.values import quote, read_flag
from intermediate_server.errors import ConfigError

MAX_FILE_BYTES = 1 << 20
"""Bytes of the largest file that is parsed; no configuration comes near."""


def read(path: Path) -> dict[str, Any]:
    """Keys and values of a configuration file, not yet checked. Raises ``ConfigError``.

    A name ending in ``.json`` is read as the older server's configuration, anything else as TOML.
    """
    text, old = _read_text(path), compat.is_old(path)
    try:
        data = json.loads(text) if old else tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except ValueError as error:
        kind = "JSON" if old else "TOML"
        reason = str(error).splitlines()[0] if str(error) else "malformed"
        raise ConfigError(f"{path}: not valid {kind}: {ascii(reason[:200])[1:-1]}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds {quote(data)} instead of settings by name")
    return compat.settings_of(path, data, read_flag) if old else data


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
