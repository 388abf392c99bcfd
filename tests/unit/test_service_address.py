"""The addresses of services."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Address

import pytest
from tests.unit.settings import RELAY

from intermediate_server.client.agent import AgentOptions, TunOptions
from intermediate_server.client.connector import ConnectorOptions
from intermediate_server.client.service_address import service_addresses
from intermediate_server.client.specs import BackendSpec
from intermediate_server.errors import ConfigError


class TestServiceAddresses:
    def test_they_never_change(self) -> None:
        """Both ends derive them: another result cuts an agent off from every older connector."""
        assert [str(address) for address in service_addresses("web")] == [
            "198.18.209.62",
            "fd64:7a74:6e61:5:39b:3d1e:1392:9295",
        ]

    def test_two_services_with_one_address_are_refused_at_both_ends(self) -> None:
        names: dict[IPv4Address, str] = {}
        numbered = (f"service-{number}" for number in itertools.count())
        name = next(name for name in numbered if names.setdefault(service_addresses(name)[0], name) != name)
        other = names[service_addresses(name)[0]]
        agent = AgentOptions(relay=RELAY, services=("web", other, name), tun=TunOptions())
        backends = tuple(BackendSpec.parse(f"{each}=tcp://127.0.0.1:80") for each in (other, name))
        for options in (agent, ConnectorOptions(relay=RELAY, backends=backends)):
            with pytest.raises(ConfigError, match=f"{other}.*{name}.*same service address"):
                options.all_services()
