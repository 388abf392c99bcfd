"""The small parts of agent and connector: how things are written, waited for and derived."""

from __future__ import annotations

import asyncio
import itertools
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.settings import RELAY

from intermediate_server.client import ClientEngine
from intermediate_server.client.agent import AgentOptions, TunOptions, inner_addresses, running
from intermediate_server.client.connector import ConnectorOptions, serving
from intermediate_server.client.hosts import look_up, plain_host
from intermediate_server.client.netcheck import jitter
from intermediate_server.client.relay import Relay
from intermediate_server.client.service_address import service_addresses
from intermediate_server.client.specs import BackendSpec, ForwardSpec, MapSpec
from intermediate_server.client.tun import Plan, Tun
from intermediate_server.config import resolve_client
from intermediate_server.config.clients import AgentSettings
from intermediate_server.errors import ConfigError, ConnectError, TunnelError


class TestOptions:
    def test_an_agent_needs_services_and_one_way_in(self) -> None:
        forward = ForwardSpec.parse("tcp:127.0.0.1:0=web")
        for options in (
            AgentOptions(relay=RELAY),
            AgentOptions(relay=RELAY, services=("web",)),
            AgentOptions(relay=RELAY, forwards=(forward,), tun=TunOptions()),
        ):
            with pytest.raises(ConfigError):
                options.all_services()
        maps = (MapSpec.parse("10.0.0.1=db"), MapSpec.parse("10.0.0.2=web"))
        tun = TunOptions(maps=maps, default_service="lan")
        assert AgentOptions(relay=RELAY, services=("web",), tun=tun).all_services() == ("web", "db", "lan")

    def test_a_mapped_address_takes_the_place_of_the_derived_one_in_its_family(self) -> None:
        v4, v6 = map(str, service_addresses("web"))
        routes = TunOptions(maps=(MapSpec.parse("10.0.0.1=web"),)).routes(["web"])
        assert [(item.address, item.destination) for item in routes] == [("10.0.0.1", v4), (v6, v6)]

    @pytest.mark.parametrize(
        "maps",
        [("10.0.0.1=web", "10.0.0.2=web"), ("10.0.0.1=web", "10.0.0.1=db"), (f"{service_addresses('db')[0]}=web",)],
    )
    def test_maps_that_cannot_be_told_apart_are_refused(self, maps: tuple[str, ...]) -> None:
        tun = TunOptions(maps=tuple(MapSpec.parse(text) for text in maps))
        with pytest.raises(ConfigError):
            AgentOptions(relay=RELAY, services=("web", "db"), tun=tun).all_services()

    def test_an_anonymous_agent_has_the_address_of_those_in_the_field(self) -> None:
        assert str(inner_addresses(AgentOptions(relay=RELAY))[0]) == "100.64.0.1"

    def test_a_connector_serves_each_service_once(self) -> None:
        web = BackendSpec.parse("web=tcp://127.0.0.1:80")
        assert ConnectorOptions(relay=RELAY, backends=(web,)).all_services() == ("web",)
        for options in (
            ConnectorOptions(relay=RELAY),
            ConnectorOptions(relay=RELAY, backends=(web, web)),
            ConnectorOptions(relay=RELAY, backends=(web,), tun="x"),
        ):
            with pytest.raises(ConfigError):
                options.all_services()


class TestSettings:
    def test_flag_before_variable_before_file(self, tmp_path: Path) -> None:
        file = tmp_path / "agent.toml"
        file.write_text('server = "file:1"\nkeep-alive = "2s"\nno-verify-peer = true\nforward = ["a", "b"]\n')
        env = {"ZTNA_AGENT_SERVER": "variable:2", "ZTNA_AGENT_KEEP_ALIVE": "3s", "ZTNA_SERVER": "no"}
        flags = {"server": "flag:3", "config": str(file)}
        settings = resolve_client(AgentSettings, "agent", flags, env=env).settings
        assert (settings.server, settings.keep_alive, settings.forward) == ("flag:3", 3.0, ("a", "b"))

    def test_a_range_is_told(self) -> None:
        with pytest.raises(ConfigError, match="out of range, 500ms to 25s"):
            resolve_client(AgentSettings, "agent", {"server": "a", "keep_alive": "1h", "no_verify_peer": "yes"}, env={})


class TestHosts:
    @pytest.mark.parametrize(
        ("written", "plain"),
        [
            ("Relay.Example.", "relay.example"),
            ("relay.example", "relay.example"),
            ("B\u00dcCHER.example", "xn--bcher-kva.example"),
            ("b\u00fccher\u3002example", "xn--bcher-kva.example"),
            ("my_host", "my_host"),
            ("192.0.2.1", "192.0.2.1"),
            ("2001:DB8::0:1", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1"),
        ],
    )
    def test_a_host_has_one_form(self, written: str, plain: str) -> None:
        assert plain_host(written) == plain
        server = f"[{written}]:5" if ":" in written else f"{written}:5"
        assert Relay(server=server).shown.server_name == plain

    @pytest.mark.parametrize("host", ["\u00fc" * 80 + ".example", "xn\u00fc\u200b\u2028.example"])
    def test_what_is_no_name(self, host: str) -> None:
        with pytest.raises(ConnectError, match="is not a host name"):
            plain_host(host)

    async def test_zones(self) -> None:
        index = socket.if_nametoindex("lo")
        assert await look_up("fe80::1%lo", 5) == [(f"fe80::1%{index}", 5)]
        assert await look_up(f"fe80::1%{index}", 5) == [(f"fe80::1%{index}", 5)]
        for zone in ("nowhere0", "9" * 9, "9" * 30):
            with pytest.raises(ConnectError, match=f"this host has no interface '{zone}'"):
                await look_up(f"fe80::1%{zone}", 5)
        with pytest.raises(ConnectError, match="write 2001:db8::1"):
            await look_up("2001:db8::1%lo", 5)

    async def test_a_zone_deafens_no_engine(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
        async with asyncio.timeout(30), ClientEngine() as engine:
            for host in ("fe80::1%lo", "fe80::1%nowhere0", "fe80::1%" + "9" * 30):
                with pytest.raises(ConnectError):
                    await engine.connect((host, port), verify=False, handshake_timeout=0.05)
            with pytest.raises(ConnectError, match="nothing listens"):
                await engine.connect(("127.0.0.1", port), verify=False)


class BrokenEngine(ClientEngine):
    def fail(self) -> None:
        self._bridge._fail("it broke")


@pytest.mark.parametrize("role", ["agent", "connector"])
async def test_an_engine_that_fails_ends_its_users(role: str) -> None:
    relay = Relay(server="127.0.0.1:1", verify=False)
    async with BrokenEngine() as engine:
        if role == "agent":
            forwards = (ForwardSpec.parse("tcp:127.0.0.1:0=web"),)
            end: Any = running(AgentOptions(relay=relay, forwards=forwards), engine=engine)
        else:
            end = serving(
                ConnectorOptions(relay=relay, backends=(BackendSpec.parse("web=tcp://127.0.0.1:80"),)), engine=engine
            )
        with pytest.raises(TunnelError, match="the engine cannot go on: it broke"):
            async with asyncio.timeout(10), end:
                engine.fail()
                await asyncio.Event().wait()


class TestJitter:
    @given(st.lists(st.integers(1_000, 300_000), min_size=3, max_size=30))
    def test_it_is_that_of_the_samples(self, samples: list[int]) -> None:
        smoothed = [float(samples[0])]
        for sample in samples[1:]:
            smoothed.append(smoothed[-1] * 7 / 8 + sample / 8)
        steps = [abs(after - before) for before, after in itertools.pairwise(samples[1:])]
        # The engine tells whole microseconds, of which eight times seven are missed at the most.
        assert jitter([int(each) for each in smoothed]) == pytest.approx(sum(steps) / len(steps) / 1000, abs=0.06)

    def test_too_few_samples_tell_nothing(self) -> None:
        assert jitter([1_000, 1_001]) is None


class TestTun:
    @pytest.mark.parametrize("name", ["", "x" * 16, "a/b"])
    def test_a_name_that_no_interface_can_have(self, name: str) -> None:
        with pytest.raises(TunnelError, match="is not the name of an interface"):
            Tun(Plan(name, [], []))
