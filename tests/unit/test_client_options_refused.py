"""What agent, connector and netcheck refuse before they start, each with a sentence."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from intermediate_server.cli import main
from intermediate_server.client.agent import AgentOptions, TunOptions
from intermediate_server.client.connector import ConnectorOptions
from intermediate_server.client.relay import Relay
from intermediate_server.client.service_address import service_addresses
from intermediate_server.client.specs import BackendSpec, ForwardSpec, MapSpec
from intermediate_server.config.clients import AgentSettings
from intermediate_server.errors import ConfigError

RELAY = Relay(server="relay.example:4433")


@pytest.mark.parametrize(
    ("server", "spec", "told"),
    [
        ("192.0.2.1:4433", "192.0.2.1=web", "192.0.2.1 is the relay's own address"),
        ("[2001:DB8::1]", "2001:db8:0::1=web", "2001:db8::1 is the relay's own address"),
        ("relay.example", "10.9.9.9=web", "10.9.9.9 is our own address"),
    ],
)
def test_an_address_in_use_stands_for_no_service(server: str, spec: str, told: str) -> None:
    tun = TunOptions(maps=(MapSpec.parse(spec),), addresses=(IPv4Address("10.9.9.9"),))
    with pytest.raises(ConfigError, match=told):
        AgentOptions(relay=Relay(server=server), tun=tun).all_services()


def test_the_relay_s_address_is_not_our_own() -> None:
    tun = TunOptions(addresses=(IPv4Address("192.0.2.1"),))
    with pytest.raises(ConfigError, match="is the relay's own address"):
        AgentOptions(relay=Relay(server="192.0.2.1"), services=("web",), tun=tun).all_services()


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "224.0.0.1", "0.0.0.0", "::1", "fe80::1", "255.255.255.255", "::ffff:10.0.0.1", "[::]"]
)
def test_an_address_that_no_host_has_stands_for_no_service(address: str) -> None:
    with pytest.raises(ConfigError, match="cannot stand for a service"):
        MapSpec.parse(f"{address}=web")


@pytest.mark.parametrize("name", ["a b", "a,b", "a\u00a0b", " web", "web "])
def test_a_name_with_a_space_or_a_comma(name: str) -> None:
    for parse, text in (
        (ForwardSpec.parse, f"tcp:127.0.0.1:80={name}"),
        (MapSpec.parse, f"10.0.0.1={name}"),
        (BackendSpec.parse, f"{name}=tcp://127.0.0.1:80"),
    ):
        with pytest.raises(ConfigError, match="a space or a comma"):
            parse(text)
    for options in (
        AgentOptions(relay=RELAY, services=(name,), tun=TunOptions()),
        ConnectorOptions(relay=RELAY, tun="ztna%d", services=(name,)),
    ):
        with pytest.raises(ConfigError, match="a space or a comma"):
            options.all_services()


@pytest.mark.parametrize(
    "arguments",
    [
        ["agent", "--server", "a", "--server", "b", "--forward", "tcp:127.0.0.1:0=web"],
        ["connector", "--server", "a", "--server=b", "--service", "web=tcp://127.0.0.1:80"],
        ["netcheck", "--server", "a", "--server", "b"],
        ["serve", "--port", "1", "--port", "2"],
        ["pki", "issue", "agent", "me", "--service", "web", "--state-dir", "a", "--state-dir", "b"],
    ],
)
def test_an_option_of_one_value_that_is_given_twice(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "is given 2 times, with" in capsys.readouterr().err


def test_the_address_of_a_service(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["address", "web"]) == 0
    assert capsys.readouterr().out.split() == [str(address) for address in service_addresses("web")]
    assert main(["address", "a web"]) == 2


def test_names_of_services_without_an_interface() -> None:
    settings = AgentSettings(server="192.0.2.1", no_verify_peer=True, hosts=Path("/etc/hosts"))
    with pytest.raises(ConfigError, match=r"--hosts .* with --tun only"):
        AgentOptions.of(settings)
