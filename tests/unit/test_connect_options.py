"""A client's options: written once, the same from settings and in Python."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from intermediate_server.client import options as connect_options
from intermediate_server.client.agent import AgentOptions
from intermediate_server.client.connector import ConnectorOptions
from intermediate_server.client.engine import ClientEngine
from intermediate_server.client.options import ConnectOptions
from intermediate_server.client.relay import SEND_QUEUE, Relay
from intermediate_server.client.specs import BackendSpec, ForwardSpec
from intermediate_server.config.clients import AgentSettings, ConnectorSettings
from intermediate_server.engine import ClientTls

PLAIN: dict[str, Any] = {"server": "relay.example", "no_verify_peer": True}


def test_the_defaults_of_settings_are_those_of_python() -> None:
    relay = Relay(server="relay.example", verify=False)
    assert Relay.of(AgentSettings.model_validate(PLAIN)) == relay
    assert AgentOptions.of(AgentSettings.model_validate({**PLAIN, "tun": True, "service": "web"})).relay == relay
    assert ConnectorOptions.of(
        ConnectorSettings.model_validate({**PLAIN, "service": "web=tcp://h:1"})
    ) == ConnectorOptions(relay=relay, backends=(BackendSpec.parse("web=tcp://h:1"),))


def test_every_option_arrives() -> None:
    given = PLAIN | {
        "forward": "tcp:127.0.0.1:0=web",
        "ca_cert": "ca.pem",
        "cert": "a.pem",
        "key": "a.key",
        "readable_keys": True,
        "server_name": "ztna-server",
        "keep_alive": "2s",
        "idle_timeout": "1m",
        "handshake_timeout": "3s",
        "inner_pool_v4": "10.0.0.0/8",
    }
    assert AgentOptions.of(AgentSettings.model_validate(given)) == AgentOptions(
        relay=Relay(
            server="relay.example",
            verify=False,
            ca_file=Path("ca.pem"),
            cert_file=Path("a.pem"),
            key_file=Path("a.key"),
            readable_keys=True,
            server_name="ztna-server",
            keep_alive=2.0,
            idle_timeout=60.0,
            handshake_timeout=3.0,
            inner_pool_v4=IPv4Network("10.0.0.0/8"),
        ),
        forwards=(ForwardSpec.parse("tcp:127.0.0.1:0=web"),),
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (ConnectOptions("relay.example"), (30_000, 10_000, 10_000, 1_472, 1_048_576)),
        (Relay(server="relay.example"), (15_000, 10_000, 1_500, 1_472, SEND_QUEUE)),
    ],
)
def test_what_the_engine_is_told(
    monkeypatch: pytest.MonkeyPatch, options: ConnectOptions, told: tuple[int, ...]
) -> None:
    tls = ClientTls(verify=False)
    monkeypatch.setattr(connect_options, "ConnectConfig", dict)
    names = ("idle_timeout_ms", "handshake_timeout_ms", "keep_alive_ms", "max_udp_payload", "send_queue_bytes")
    config: Any = options.config(("192.0.2.1", 4433), tls, options.shown)
    assert config == {
        "remote": ("192.0.2.1", 4433),
        "server_name": "relay.example",
        "tls": tls,
        "bind": None,
        "alpn": [b"ztna-v1"],
        **dict(zip(names, told, strict=True)),
    }


async def test_connect_takes_options_by_keyword() -> None:
    engine = ClientEngine()
    taken: list[ConnectOptions] = []

    async def opened(options: ConnectOptions) -> None:
        taken.append(options)

    engine.open = opened  # type: ignore[method-assign, assignment]  # it shows what it was given
    async with engine:
        await engine.connect(("192.0.2.1", 1), verify=False, keep_alive=0)
        wrong: Any = {"keepalive": 0}
        with pytest.raises(TypeError, match="keepalive"):
            await engine.connect("relay.example", **wrong)
    assert taken == [ConnectOptions(("192.0.2.1", 1), verify=False, keep_alive=0)]
