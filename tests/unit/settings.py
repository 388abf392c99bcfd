"""What flags, variables and files add up to, for tests of the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from intermediate_server.client.relay import Relay
from intermediate_server.config import Resolved, Settings, resolve
from intermediate_server.errors import ConfigError

RELAY = Relay(server="relay.example:4433")


def resolved(
    flags: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None, files: Sequence[Path] = ()
) -> Resolved[Settings]:
    """What flags, variables and files add up to, whatever this host has in its environment."""
    return resolve(flags or {}, env={"HOME": "/home/someone", **(env or {})}, files=files)


def load(flags: Mapping[str, Any], *, env: Mapping[str, str], files: Sequence[Path] = ()) -> Settings:
    """The settings alone, with no other environment than the one that is given."""
    return resolve(flags, env=env, files=files).settings


def settings(
    flags: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None, files: Sequence[Path] = ()
) -> Settings:
    return resolved(flags, env, files).settings


def problem(
    flags: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None, files: Sequence[Path] = ()
) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(flags, env, files)
    return str(caught.value)
