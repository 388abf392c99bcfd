"""From the settings to the engine's: the names and the defaults of both are the same."""

from __future__ import annotations

import inspect
from typing import Any
from unittest import mock

import pytest

from intermediate_server.config import Settings
from intermediate_server.engine import ListenConfig
from intermediate_server.pki import temporary_secrets
from intermediate_server.server import listener

DECIDED = {"bind", "tls", "token_key", "reset_key", "max_connections", "known_addresses", "known_in_part"}
"""What is no setting, or is decided from several."""


def given(monkeypatch: pytest.MonkeyPatch, **settings: object) -> dict[str, Any]:
    """What the engine is told."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(listener, "ListenConfig", told.update)
    trust = mock.Mock(spec=listener.Trust, tls=None)
    listener.listen_config(Settings.model_validate(settings), trust, temporary_secrets(), max_connections=7)
    return told


def test_every_default_is_the_one_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = inspect.signature(ListenConfig).parameters
    told = given(monkeypatch)
    assert set(told) | {"alpn"} == set(parameters)
    for name in set(told) - DECIDED:
        assert (told[name], type(told[name])) == (parameters[name].default, type(parameters[name].default)), name
    assert told["max_connections"] == 7


def test_what_is_set_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    told = given(
        monkeypatch,
        disable_retry=True,
        idle_timeout="1500ms",
        send_queue_bytes="1MiB",
        inner_addresses="off",
        inner_pool_v4="10.0.0.0/8",
        icmp_source_v6="fd00::1",
        bind="127.0.0.1",
        port=1,
    )
    assert told["retry"] is False
    assert (told["idle_timeout_ms"], told["send_queue_bytes"]) == (1_500, 1 << 20)
    assert (told["inner_addresses"], told["inner_pool_v4"], told["icmp_source_v6"]) == ("off", "10.0.0.0/8", "fd00::1")
    assert told["bind"] == [("127.0.0.1", 1)]
