"""Settings properties: whatever a file, flag or variable holds ends in ``Settings`` or a short ``ConfigError``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from intermediate_server.config import Settings, resolve
from intermediate_server.config import values as readers
from intermediate_server.errors import ConfigError

NAMES = sorted(Settings.model_fields)
KEYS = st.sampled_from(NAMES) | st.sampled_from(NAMES).map(lambda name: name.replace("_", "-"))
WORDS = st.sampled_from(
    ["", "1", "-1", "0", "30s", "256KiB", "::1", "[::1]", "127.0.0.1", "10.0.0.0/8", "auto", "off", "true", "a:b", "~x"]
)
TEXT = WORDS | st.text(max_size=40)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))


def read(
    content: bytes | None, suffix: str = ".toml", *, flags: Mapping[str, Any] | None = None, env: Any = None
) -> Settings | None:
    """The settings, or None when they are refused in a way fit for a terminal; anything else is a failure."""
    with tempfile.TemporaryDirectory() as directory:
        given_flags = dict(flags or {})
        if content is not None:
            path = Path(directory) / f"config{suffix}"
            path.write_bytes(content)
            given_flags["config"] = str(path)
        try:
            return resolve(given_flags, env={"HOME": "/h", **(env or {})}, files=()).settings
        except ConfigError as error:
            lines = str(error).splitlines()
            assert 0 < len(lines) <= 22
            for line in lines:
                assert line.isprintable()
                assert len(line) < 1000
            return None


@given(st.binary(max_size=400))
@example(b"\xef\xbb\xbfport = 1")
@example(b"[" * 5000)
@example(b"a" + b".a" * 1500 + b" = 1")
@example(b"port = 0x" + b"f" * 5000)
@example(b"port = " + b"9" * 5000)
@example(b"idle-timeout = 1e999999999")
@example(b"idle-timeout = -nan")
def test_any_bytes_as_toml(content: bytes) -> None:
    read(content)


@given(st.binary(max_size=400))
@example(b"[" * 100_000)
@example(b'{"port": ' + b"9" * 5000 + b"}")
@example(b'{"a": 1, "a": 2}')
@example(b'{"port": NaN}')
@example(b'"\\ud800"')
@example(b'{"\\ud800": 1}')
@example(b'{"external_ip": "\\ud800"}')
def test_any_bytes_as_the_older_servers_file(content: bytes) -> None:
    read(content, ".json")


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_key_and_text_as_toml(key: str, value: str) -> None:
    read(f"{json.dumps(key)} = {json.dumps(value)}\n".encode())


@given(st.dictionaries(KEYS | TEXT, VALUES, max_size=6))
def test_any_structure_as_json(data: dict[str, Any]) -> None:
    read(json.dumps(data).encode(), ".json")


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4), st.dictionaries(TEXT, TEXT, max_size=3))
def test_any_flags_and_variables(flags: dict[str, Any], env: dict[str, str]) -> None:
    read(None, flags=flags, env={f"ZTNA_{name}".upper(): value for name, value in env.items()})


READERS: list[Callable[[object], object]] = [
    readers.read_duration,
    readers.read_integer,
    readers.read_size,
    readers.read_address,
    readers.read_addresses,
    readers.read_pool4,
    readers.read_pool6,
    readers.read_path,
    readers.read_flag,
    readers.read_reference,
    readers.read_choice("a", "b"),
]


@pytest.mark.parametrize("read_value", READERS, ids=[getattr(reader, "__name__", "") for reader in READERS])
@given(value=VALUES | st.binary(max_size=20))
def test_a_reader_reads_or_raises_value_error(read_value: Callable[[object], object], value: object) -> None:
    try:
        read_value(value)
    except ValueError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 300


@given(st.integers(0, 1 << 40))
def test_sizes_round_trip(size: int) -> None:
    assert readers.read_size(readers.show_size(size)) == size


@given(st.integers(0, 10**12))
def test_durations_round_trip_to_the_millisecond(milliseconds: int) -> None:
    shown = readers.show_duration(milliseconds / 1000)
    assert round(readers.read_duration(shown) * 1000) == milliseconds


@given(st.ip_addresses())
def test_addresses_round_trip(address: Any) -> None:
    mapped = getattr(address, "ipv4_mapped", None)
    assert readers.read_address(f"[{address}]" if address.version == 6 else str(address)) == (mapped or address)


@given(st.integers(0, 65535), st.integers(1000, 3_600_000), st.booleans(), st.sampled_from(["auto", "off"]))
def test_good_values_arrive_by_every_way(port: int, idle: int, retry: bool, inner: str) -> None:
    values = {"port": port, "idle-timeout": idle / 1000, "disable-retry": retry, "inner-addresses": inner}
    toml = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()).encode()
    text = {key.replace("-", "_"): str(value).lower() for key, value in values.items()}
    by_file = read(toml)
    assert by_file is not None
    assert by_file == read(None, flags=text)
    assert by_file == read(None, env={f"ZTNA_{key.upper()}": value for key, value in text.items()})
