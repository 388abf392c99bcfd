"""How forwards, maps and backends are written."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.settings import RELAY

from intermediate_server.client.connector import ConnectorOptions
from intermediate_server.client.specs import BackendSpec, ForwardSpec, MapSpec, check_service
from intermediate_server.errors import ConfigError


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
            ("web=tcp+proxy://[::1]:80", BackendSpec("web", "tcp", (("::1", 80),), proxy=True)),
            ("dns=udp://[2001:db8::1]:53, udp://ns:53", BackendSpec("dns", "udp", (("2001:db8::1", 53), ("ns", 53)))),
        ],
    )
    def test_backends(self, text: str, expected: BackendSpec) -> None:
        assert BackendSpec.parse(text) == expected

    @pytest.mark.parametrize(
        "text",
        [
            "web",
            "web=",
            "web=127.0.0.1:80",
            "=tcp://a:1",
            "a=tcp://b:0",
            "a=tcp://b:1,udp://b:1",
            "a=tcp://b@c:1",
            "a=udp+proxy://b:1",
            "a=tcp+proxy+proxy://b:1",
            "a=+proxy://b:1",
            "a=tcp://b:1,tcp+proxy://c:1",
        ],
    )
    def test_what_is_no_backend(self, text: str) -> None:
        with pytest.raises(ConfigError):
            BackendSpec.parse(text)

    def test_urls_are_those_that_were_written(self) -> None:
        text = "tcp+proxy://[::1]:80,tcp+proxy://app:81"
        assert BackendSpec.parse(f"web={text}").urls == text.split(",")

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
