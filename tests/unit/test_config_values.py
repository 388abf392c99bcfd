"""Values of settings as people write them: what is read, and what is refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from intermediate_server.config.values import (
    quote,
    read_address,
    read_addresses,
    read_choice,
    read_duration,
    read_flag,
    read_integer,
    read_path,
    read_pool4,
    read_pool6,
    read_reference,
    read_size,
    show_duration,
    show_size,
)

LOOPBACK6 = IPv6Address("::1")
read_color = read_choice("red", "green")


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (read_duration, "30s", 30.0),
        (read_duration, "500ms", 0.5),
        (read_duration, "1.5 h", 5400.0),
        (read_duration, "2min", 120.0),
        (read_duration, "1D", 86400.0),
        (read_duration, " 7 ", 7.0),
        (read_duration, 0.25, 0.25),
        (read_integer, "4433", 4433),
        (read_integer, " -1 ", -1),
        (read_size, "256KiB", 262_144),
        (read_size, "4 mib", 4 << 20),
        (read_size, "1.5kb", 1500),
        (read_size, 65536, 65536),
        (read_address, "[::1]", LOOPBACK6),
        (read_address, "::1", LOOPBACK6),
        (read_address, "::ffff:192.0.2.1", IPv4Address("192.0.2.1")),
        (read_addresses, "127.0.0.1, ::1,", (IPv4Address("127.0.0.1"), LOOPBACK6)),
        (read_addresses, ["::1", "[::1]"], (LOOPBACK6,)),
        (read_flag, "YES", True),
        (read_flag, "0", False),
        (read_flag, False, False),
        (read_color, " Green ", "green"),
        (read_path, "a/b", Path("a/b")),
        (read_path, "~/x", Path.home() / "x"),
        (read_reference, "pkg.mod:Class.make", "pkg.mod:Class.make"),
    ],
)
def test_what_is_read(read: Callable[[object], object], text: object, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (read_duration, "30x"),
        (read_duration, ""),
        (read_duration, "-1s"),
        (read_duration, "1e5"),
        (read_duration, True),
        (read_duration, float("nan")),
        (read_duration, float("inf")),
        pytest.param(read_duration, 10**5000, id="huge"),
        (read_duration, None),
        (read_duration, ["30s"]),
        (read_duration, "\N{ARABIC-INDIC DIGIT THREE}0s"),
        (read_integer, True),
        (read_integer, 1.0),
        (read_integer, "1_000"),
        (read_integer, "0x10"),
        (read_integer, 1 << 63),
        pytest.param(read_integer, "9" * 5000, id="long"),
        (read_size, "1.0001KiB"),
        (read_size, "4 MB/s"),
        (read_size, 1.5),
        (read_address, "relay.example"),
        (read_address, "127.0.0.1:4433"),
        (read_address, "[::1]:4433"),
        (read_address, "fe80::1%eth0"),
        (read_address, 1),
        (read_addresses, ["::1"] * 65),
        (read_addresses, {"a": 1}),
        (read_pool4, "100.64.0.1/10"),
        (read_pool4, "fd00::/64"),
        (read_pool4, 0),
        (read_pool6, "fd00::1/64"),
        (read_pool6, "10.0.0.0/8"),
        (read_flag, "maybe"),
        (read_flag, 1),
        (read_color, "blue"),
        (read_color, 3),
        (read_path, ""),
        (read_path, "a\0b"),
        (read_path, "~nobody-has-this-name/x"),
        (read_path, 5),
        (read_reference, "module"),
        (read_reference, "module:"),
        (read_reference, ":attribute"),
        (read_reference, "a b:c"),
        (read_reference, "os:system('x')"),
    ],
)
def test_what_is_refused(read: Callable[[object], object], value: object) -> None:
    with pytest.raises(ValueError, match=r"\S") as caught:
        read(value)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 300, "it is one line on a terminal"


def test_an_address_with_a_port_is_told_where_ports_go() -> None:
    with pytest.raises(ValueError, match="give the port in its own setting"):
        read_address("[::1]:4433")


HOSTILE = ["\x1b[2J", "a\nb", b"\0" * 100, 1 << 300, -(1 << 20_000), ["x"] * 1000, {1: 2}]


@pytest.mark.parametrize("value", HOSTILE, ids=[str(n) for n in range(len(HOSTILE))])
def test_quoted_values_are_short_and_printable(value: object) -> None:
    assert quote(value).isprintable()
    assert len(quote(value)) <= 70


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.5, 1.0, 1.5, 60.0, 90.0, 3600.0, 86400.0])
def test_durations_are_shown_as_they_are_read(seconds: float) -> None:
    assert read_duration(show_duration(seconds)) == seconds


@pytest.mark.parametrize("size", [0, 1, 1000, 1024, 65_536, 3 << 20, 1 << 30, (1 << 30) + 1])
def test_sizes_are_shown_as_they_are_read(size: int) -> None:
    assert read_size(show_size(size)) == size
