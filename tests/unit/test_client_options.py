"""The small parts of agent and connector: how things are written, waited for and derived."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intermediate_server.client import ClientEngine
from intermediate_server.client import dial as dials
from intermediate_server.client import relay as relays
from intermediate_server.client.agent import AgentOptions, TunOptions, inner_addresses, running
from intermediate_server.client.backends import Backends
from intermediate_server.client.backoff import Backoff
from intermediate_server.client.connector import ConnectorOptions, serving
from intermediate_server.client.dial import Dialler, Remote
from intermediate_server.client.hosts import look_up, plain_host
from intermediate_server.client.netcheck import jitter
from intermediate_server.client.relay import Relay
from intermediate_server.client.service_address import service_addresses
from intermediate_server.client.specs import BackendSpec, ForwardSpec, MapSpec, check_service
from intermediate_server.client.tasks import background
from intermediate_server.client.tun import Plan, Tun
from intermediate_server.config import resolve_end
from intermediate_server.config.clients import AgentSettings
from intermediate_server.errors import ConfigError, ConnectError, TunnelError

RELAY = Relay(server="relay.example:4433")


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


class TestSpecs:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("tcp:127.0.0.1:8080=web", ForwardSpec("tcp", "127.0.0.1", 8080, "web")),
            ("udp:[::1]:0=dns", ForwardSpec("udp", "::1", 0, "dns")),
            ("tcp:127.0.0.1:80=a=b", ForwardSpec("tcp", "127.0.0.1", 80, "a=b")),
        ],
    )
    def test_forwards(self, text: str, expected: ForwardSpec) -> None:
        assert ForwardSpec.parse(text) == expected

    @pytest.mark.parametrize(
        "text",
        ["", "web", "8080=web", "tcp:8080=web", "tcp:localhost:80=web", "icmp:127.0.0.1:1=x", "tcp:127.0.0.1:65536=x",
         "tcp:127.0.0.1:80=", "tcp:[::1:80=x", "tcp:127.0.0.1:80=" + "x" * 256, "tcp:127.0.0.1:80=a\nb"],
    )  # fmt: skip
    def test_what_is_no_forward(self, text: str) -> None:
        with pytest.raises(ConfigError):
            ForwardSpec.parse(text)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("web=tcp://127.0.0.1:8080", BackendSpec("web", "tcp", (("127.0.0.1", 8080),))),
            ("dns=udp://[2001:db8::1]:53, udp://ns:53", BackendSpec("dns", "udp", (("2001:db8::1", 53), ("ns", 53)))),
        ],
    )
    def test_backends(self, text: str, expected: BackendSpec) -> None:
        assert BackendSpec.parse(text) == expected

    @pytest.mark.parametrize(
        "text",
        ["web", "web=", "web=127.0.0.1:80", "=tcp://a:1", "a=tcp://b:0", "a=tcp://b:1,udp://b:1", "a=tcp://b@c:1"],
    )
    def test_what_is_no_backend(self, text: str) -> None:
        with pytest.raises(ConfigError):
            BackendSpec.parse(text)

    def test_a_service_of_both_protocols(self) -> None:
        both = (BackendSpec("dns", "udp", (("a", 53), ("b", 53))), BackendSpec("dns", "tcp", (("a", 53),)))
        assert BackendSpec.parse_all("dns=udp://a:53,tcp://a:53,udp://b:53") == both
        twice = BackendSpec.parse_all("dns=udp://c:53")
        assert ConnectorOptions(relay=RELAY, backends=both).all_services() == ("dns",)
        with pytest.raises(ConfigError, match="each service once"):
            ConnectorOptions(relay=RELAY, backends=(*both, *twice)).all_services()

    @pytest.mark.parametrize(
        ("parse", "text"),
        [
            (ForwardSpec.parse, "tcp:127.0.0.1:80=Web"),
            (MapSpec.parse, "10.0.0.1=Web"),
            (BackendSpec.parse_all, "Web=tcp://127.0.0.1:80"),
            (check_service, "Web"),
        ],
    )
    def test_a_service_with_capitals_is_refused_by_what_to_write(
        self, parse: Callable[[str], object], text: str
    ) -> None:
        with pytest.raises(ConfigError, match="write the service as 'web'"):
            parse(text)

    @given(st.text(max_size=80))
    def test_any_text_ends_in_a_value_or_a_sentence(self, text: str) -> None:
        for parse in (ForwardSpec.parse, MapSpec.parse, BackendSpec.parse, BackendSpec.parse_all):
            try:
                parse(text)
            except ConfigError as error:
                assert str(error)

    def test_maps(self) -> None:
        assert MapSpec.parse("10.100.0.2=web") == MapSpec(IPv4Address("10.100.0.2"), "web")
        assert MapSpec.parse("[fd00::2]=web") == MapSpec(IPv6Address("fd00::2"), "web")
        with pytest.raises(ConfigError):
            MapSpec.parse("web=10.100.0.2")


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
        settings = resolve_end(AgentSettings, "agent", flags, env=env).settings
        assert (settings.server, settings.keep_alive, settings.forward) == ("flag:3", 3.0, ("a", "b"))

    def test_a_range_is_told(self) -> None:
        with pytest.raises(ConfigError, match="out of range, 500ms to 25s"):
            resolve_end(AgentSettings, "agent", {"server": "a", "keep_alive": "1h", "no_verify_peer": "yes"}, env={})


class TestBackoff:
    def test_it_doubles_to_its_most_with_jitter(self) -> None:
        backoff = Backoff(first=0.25, most=1.5)
        for whole in (0.25, 0.5, 1.0, 1.5, 1.5):
            assert whole / 2 <= backoff.delay() <= whole
        backoff.reset()
        assert backoff.delay() <= 0.25


class TestDialling:
    async def test_families_take_turns_and_names_are_looked_up_each_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = [["192.0.2.1", "192.0.2.2", "2001:db8::1"], ["2001:db8::2"]]

        async def lookup(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
            kinds = {True: socket.AF_INET6, False: socket.AF_INET}
            return [(kinds[":" in each], 0, 0, "", (each, port)) for each in found.pop(0)]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
        assert [host for host, _ in await relays.addresses(RELAY)] == ["192.0.2.1", "2001:db8::1", "192.0.2.2"]
        assert await relays.addresses(RELAY) == [("2001:db8::2", 4433)]

    async def test_a_name_that_no_message_can_hold(self) -> None:
        with pytest.raises(ConnectError, match="cannot be resolved"):
            await relays.addresses(Relay(server="relay..example"))

    @pytest.fixture(autouse=True)
    def quickly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dials, "Backoff", lambda first=0.001, most=0.001: Backoff(first=first, most=most))
        monkeypatch.setattr(dials, "FIRST_REST", 0.02)
        monkeypatch.setattr(dials, "STAGGER", 0.001)
        monkeypatch.setattr(dials, "PATIENCE", 0.001)
        monkeypatch.setattr(dials, "LOOK_UP", 0.001)

    async def test_a_relay_that_moves_is_found(self) -> None:
        line = Line()

        async def look_up() -> list[Remote]:
            return [("192.0.2.9" if len(line.tried) >= 3 else "192.0.2.1", 4433)]

        assert await line.dial(look_up) == ("connected", ("192.0.2.9", 4433))
        assert set(line.told) == {"nobody there"}
        assert line.dialler.known == [("192.0.2.9", 4433)]

    @pytest.mark.parametrize("hangs", [True, False])
    async def test_known_addresses_are_tried_without_a_name_server(self, hangs: bool) -> None:
        async def look_up() -> list[Remote]:
            if hangs:
                await asyncio.Event().wait()
            raise ConnectError("no name server")

        line = Line()
        assert await line.dial(look_up, known=["192.0.2.1", "192.0.2.9"]) == ("connected", ("192.0.2.9", 4433))
        assert line.tried == ["192.0.2.1", "192.0.2.9"]

    async def test_the_oldest_try_gives_way(self) -> None:
        """A path that swallows everything must not keep later tries away."""
        given_up = 0

        async def connect(_: Remote) -> Any:
            nonlocal given_up
            if next(begun) > 2 * dials.MAX_TRIES_AT_ONCE:
                return "connected"
            try:
                return await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                given_up += 1
                raise

        begun = itertools.count(1)
        assert (await Line(connect).dial(hanging, known=["192.0.2.1"]))[0] == "connected"
        assert given_up > dials.MAX_TRIES_AT_ONCE

    async def test_an_address_that_refuses_us_rests_and_the_others_do_not(self) -> None:
        line = Line()
        refusing, silent = "192.0.2.7", "192.0.2.1"
        dialling = asyncio.ensure_future(line.dial(hanging, known=[refusing, silent]))
        async with asyncio.timeout(10):
            while line.tried.count(refusing) < 4:  # noqa: ASYNC110  the tries are the clock
                await asyncio.sleep(0.001)
        dialling.cancel()
        times = [at for host, at in zip(line.tried, line.times, strict=True) if host == refusing]
        pauses = [after - before for before, after in itertools.pairwise(times)]
        # Jitter shortens each by up to half.
        assert [pause >= least for pause, least in zip(pauses, (0.01, 0.02, 0.04), strict=True)] == [True] * 3
        assert line.tried.count(silent) > 4
        line.answers.add(refusing)
        line.dialler.known = [(refusing, 4433)]
        line.dialler.served((refusing, 4433))
        line.times.append(asyncio.get_running_loop().time())
        await line.dial(hanging)
        assert line.times[-1] - line.times[-2] < 0.04, "the rest is over"

    async def test_a_race_is_won_by_the_first_that_answers(self) -> None:
        lost = asyncio.Event()

        async def connect(address: Remote) -> Any:
            if address[0] == "192.0.2.3":
                return "connected"
            if address[0] == "192.0.2.2":
                raise ConnectError("nobody there", cause="port_closed")
            try:
                await asyncio.Event().wait()
            finally:
                lost.set()

        addresses = [("192.0.2.1", 1), ("192.0.2.2", 1), ("192.0.2.3", 1)]
        won: Any = await dials.race(connect, addresses)
        assert won == "connected"
        await asyncio.wait_for(lost.wait(), 5)
        with pytest.raises(ConnectError, match=r"^nobody there$") as caught:
            await dials.race(connect, addresses[1:2] * 3)
        assert caught.value.cause == "port_closed"


async def hanging() -> list[Remote]:
    """A name server that does not answer."""
    await asyncio.Event().wait()
    return []


class Line:
    """A dialler at a made-up network, where 192.0.2.9 answers and 192.0.2.7 refuses us."""

    def __init__(self, connect: Any = None) -> None:
        self.tried: list[str] = []
        self.times: list[float] = []
        self.told: list[str] = []
        self.answers = {"192.0.2.9"}
        self.connect = connect or self._connect
        self.dialler: Dialler

    async def dial(self, look_up: Any, *, known: Sequence[str] = ()) -> Any:
        if known:
            self.dialler = Dialler(self.connect, look_up, self.told.append)
            self.dialler.known += [(host, 4433) for host in known]
        elif not hasattr(self, "dialler"):
            self.dialler = Dialler(self.connect, look_up, self.told.append)
        async with asyncio.timeout(10):
            return await self.dialler.dial()

    async def _connect(self, address: Remote) -> Any:
        self.tried.append(address[0])
        self.times.append(asyncio.get_running_loop().time())
        if address[0] in self.answers:
            return "connected"
        raise ConnectError("nobody there", cause="unknown_issuer" if address[0] == "192.0.2.7" else "silent")


class TestBackends:
    async def test_the_last_answer_of_a_name_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers: list[list[str] | Exception] = [
            ["192.0.2.1", "192.0.2.2"], OSError("try again"), ValueError("a label is empty"),
            ["192.0.2.2", "192.0.2.1"], ["192.0.2.3"],
        ]  # fmt: skip

        async def lookup(*_: object, **__: object) -> list[tuple[Any, ...]]:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return [(0, 0, 0, "", (each, 0)) for each in answer]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
        backends = Backends([BackendSpec.parse("web=tcp://app.example:80,tcp://192.0.2.9:81")])
        assert backends.made()[0].addresses == [("192.0.2.9", 81)]
        assert await backends.look_up("app.example")
        first = [("192.0.2.1", 80), ("192.0.2.2", 80), ("192.0.2.9", 81)]
        assert backends.made()[0].addresses == first
        assert [await backends.look_up("app.example") for _ in range(3)] == [False] * 3
        assert backends.made()[0].addresses == first
        assert await backends.look_up("app.example")
        assert backends.made()[0].addresses == [("192.0.2.3", 80), ("192.0.2.9", 81)]

    async def test_a_name_that_hangs_holds_up_no_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def lookup(host: str, *_: object, **__: object) -> list[tuple[Any, ...]]:
            if host == "hangs.example":
                await asyncio.Event().wait()
            return [(socket.AF_INET6, 0, 0, "", ("fe80::1%eth7", 0, 0, 7))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
        specs = [BackendSpec.parse(text) for text in ("a=tcp://hangs.example:1", "b=tcp://app.example:2")]
        backends, changed = Backends(specs), asyncio.Event()
        async with asyncio.timeout(10), background(backends.follow(changed.set)):
            await changed.wait()
        # The zone of a link-local address is the number that the engine takes.
        assert [item.addresses for item in backends.made()] == [[], [("fe80::1%7", 2)]]


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


class TestBackground:
    async def test_what_fails_ends_the_block(self) -> None:
        async def task() -> None:
            raise TunnelError("it broke")

        with pytest.raises(TunnelError, match="it broke"):
            async with asyncio.timeout(10), background(task(), asyncio.sleep(3600)):
                await asyncio.Event().wait()

    async def test_the_end_of_the_block_ends_the_rest(self) -> None:
        ended = asyncio.Event()

        async def task() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        with pytest.raises(KeyError):
            async with background(task()):
                await asyncio.sleep(0)
                raise KeyError
        assert ended.is_set()


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
