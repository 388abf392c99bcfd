"""The kinds of value a setting can have, read from text as people write it.

Each reader takes the value from a flag, an environment variable or a file. It returns the checked value, or raises
``ValueError`` with a sentence that ends a line of a ``ConfigError``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Any, TypeVar

import idna

IPAddress = IPv4Address | IPv6Address
_Network = TypeVar("_Network", IPv4Network, IPv6Network)

DEFAULT_PORT = 4433
"""The default UDP port of a relay."""
MAX_SERVERS = 8
"""The most places at which one relay can be said to be."""

_MAX_TEXT = 4096
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER_UNIT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")
_TIME_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}

_NO_SOURCES_V4 = [IPv4Network(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")]
_NO_SOURCES: list[IPv4Network | IPv6Network] = [
    *_NO_SOURCES_V4,
    *(IPv6Network(text) for text in ("::/96", "::ffff:0:0/96", "fe80::/10", "ff00::/8")),
    # The same IPv4 addresses inside those of 6to4 and NAT64.
    *(IPv6Network((0x2002 << 112 | int(net[0]) << 80, 16 + net.prefixlen)) for net in _NO_SOURCES_V4),
    *(IPv6Network((0x64FF9B << 96 | int(net[0]), 96 + net.prefixlen)) for net in _NO_SOURCES_V4),
]
"""Networks of invalid packet sources, as in the engine's ``source_ok``."""


@dataclass(frozen=True, slots=True)
class Reads:
    """Marks, in an annotation, the function that reads a value of its type."""

    function: Callable[[object], Any]


def quote(value: object) -> str:
    """A value for an error line: on one line, printable, and never longer than about 60 characters.

    Error lines reach terminals and logs; control characters of a hostile file must not.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return "a huge integer"  # int to text is quadratic, and refused by Python above 4300 digits
    if isinstance(value, str | bytes):
        text = ascii(value[:60])
    elif isinstance(value, list | tuple | dict | set):
        text = f"a {type(value).__name__} of {len(value)}"
    else:
        text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _text(value: object, expected: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{quote(value)} is not {expected}")
    text = value.strip()
    if len(text) > _MAX_TEXT or not text.isprintable():
        raise ValueError(f"{quote(value)} is not {expected}")
    return text


def _number_unit(value: object, units: dict[str, float] | dict[str, int], expected: str) -> float:
    match = _NUMBER_UNIT.fullmatch(_text(value, expected))
    factor = units.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{quote(value)} is not {expected}")
    return float(match[1]) * factor


def read_duration(value: object) -> float:
    """Seconds, from a number of seconds or text such as ``30s``, ``5m``, ``500ms``. Raises ``ValueError``."""
    expected = 'a duration; write seconds, or "500ms", "30s", "5m", "2h"'
    if isinstance(value, int | float) and not isinstance(value, bool):
        if (isinstance(value, float) and not math.isfinite(value)) or abs(value) > 1e12:
            raise ValueError(f"{quote(value)} is not {expected}")
        return float(value)
    return _number_unit(value, _TIME_UNITS, expected)


def read_integer(value: object) -> int:
    """A whole number; booleans are refused, since TOML's ``true`` is never meant as 1. Raises ``ValueError``."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63:
        return value
    text = _text(value, "a whole number")
    if re.fullmatch(r"-?[0-9]{1,18}", text) is None:
        raise ValueError(f"{quote(value)} is not a whole number")
    return int(text)


def read_size(value: object) -> int:
    """Bytes, from a whole number or text such as ``256KiB`` or ``4MiB``. Raises ``ValueError``."""
    expected = 'a size; write bytes, or "256KiB", "4MiB"'
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63:
        return value
    size = _number_unit(value, _SIZE_UNITS, expected)
    if size != int(size):
        raise ValueError(f"{quote(value)} is not a whole number of bytes")
    return int(size)


def read_address(value: object) -> IPAddress:
    """An IP address, IPv6 with or without brackets; IPv4-mapped ones become IPv4. Raises ``ValueError``."""
    if isinstance(value, IPv4Address | IPv6Address):
        address: IPAddress = value
    else:
        expected = "an IP address"
        text = _text(value, expected)
        bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        try:
            address = ip_address(bare)
        except ValueError:
            if re.fullmatch(r"\[[0-9A-Fa-f:.]+\]:[0-9]+|[0-9.]+:[0-9]+", text):
                raise ValueError(f"{quote(value)} has a port; give the port in its own setting") from None
            raise ValueError(f"{quote(value)} is not {expected}") from None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise ValueError(f"{quote(value)} has a scope id, which is not supported")
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
    return address


def read_addresses(value: object) -> tuple[IPAddress, ...]:
    """Several addresses, from a list or text separated by commas; repeated ones count once. Raises ``ValueError``."""
    parts: list[object] = []
    for item in value if isinstance(value, list | tuple) else [value]:
        parts.extend(part for part in item.split(",") if part.strip()) if isinstance(item, str) else parts.append(item)
    if len(parts) > 64:
        raise ValueError(f"{len(parts)} addresses are more than the 64 supported")
    return tuple(dict.fromkeys(read_address(part) for part in parts))


def read_texts(value: object) -> tuple[str, ...]:
    """Several texts, from a list or one text; repeated ones count once. Raises ``ValueError``."""
    items = value if isinstance(value, list | tuple) else [value]
    if len(items) > 256:
        raise ValueError(f"{len(items)} entries are more than the 256 supported")
    return tuple(dict.fromkeys(_text(item, "text") for item in items))


def read_command(value: object) -> tuple[str, ...]:
    """A command's words, from a list or one text of words. Raises ``ValueError``."""
    items = value if isinstance(value, list | tuple) else _text(value, "a command").split()
    if len(items) > 64:
        raise ValueError(f"{len(items)} words are more than the 64 supported")
    words = tuple(_text(item, "a command's word") for item in items)
    if words and not words[0]:
        raise ValueError("the command has no name")
    return words


def read_hosts(value: object) -> tuple[str, ...]:
    """Host names without ports, from a list or text separated by commas, in lower case. Raises ``ValueError``."""
    names = []
    for item in value if isinstance(value, list | tuple) else [value]:
        for part in _text(item, "a host name").split(","):
            name = part.strip().lower()
            if re.fullmatch(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?", name) is None:
                raise ValueError(f"{quote(part)} is not a host name; give it without port")
            names.append(name)
    if len(names) > 64:
        raise ValueError(f"{len(names)} names are more than the 64 supported")
    return tuple(dict.fromkeys(names))


def read_host(value: object) -> str:
    """A DNS name in lower case, international ones as A-labels (RFC 5891), or an address. Raises ``ValueError``."""
    text = _text(value, "a host name or an address")
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return str(read_address(ip_address(bare)))
    except ValueError:
        if ":" in bare or bare.replace(".", "").isdigit():
            raise ValueError(f"{quote(value)} is neither a host name nor an address") from None
    try:
        name = text.lower() if text.isascii() else idna.encode(text, uts46=True).decode()
    except UnicodeError:
        raise ValueError(f"{quote(value)} is not a host name") from None
    name = name.removesuffix(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError(f"{quote(value)} is not a host name")
    return name


def read_place(value: object) -> str:
    """``host``, ``host:port``, an address or ``[IPv6]:port``, in lower case and short. Raises ``ValueError``."""
    text = _text(value, "host:port")
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):
        return read_host(text)
    if re.fullmatch(r"[0-9]{1,5}", port) is None or not 0 < int(port) < 65_536:
        raise ValueError(f"{quote(value)} has no port from 1 to 65535")
    return with_port(read_host(host), int(port))


def read_server(value: object) -> str:
    """As :func:`read_place`, without the port where that is 4433. Raises ``ValueError``."""
    host, port = split_place(read_place(value))
    return host if port is None or port == DEFAULT_PORT else with_port(host, port)


def split_place(place: str) -> tuple[str, int | None]:
    """Host and port of what :func:`read_place` has read."""
    host, colon, port = place.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):
        return place, None
    return host.removeprefix("[").removesuffix("]"), int(port)


def with_port(host: str, port: int) -> str:
    """``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_places(value: object) -> tuple[str, ...]:
    """Several places, from a list or text separated by commas; repeated ones count once. Raises ``ValueError``."""
    parts: list[object] = []
    for item in value if isinstance(value, list | tuple) else [value]:
        parts.extend(part for part in item.split(",") if part.strip()) if isinstance(item, str) else parts.append(item)
    if len(parts) > MAX_SERVERS:
        raise ValueError(f"{len(parts)} places are more than the {MAX_SERVERS} supported")
    return tuple(dict.fromkeys(map(read_place, parts)))


def read_pool4(value: object) -> IPv4Network:
    """An IPv4 pool of inner addresses in prefix notation, /8 to /30, host bits zero. Raises ``ValueError``."""
    return _read_pool(value, IPv4Network, "100.64.0.0/10", (8, 30))


def read_pool6(value: object) -> IPv6Network:
    """An IPv6 pool of inner addresses in prefix notation, /32 to /120, host bits zero. Raises ``ValueError``."""
    return _read_pool(value, IPv6Network, "fd00::/64", (32, 120))


def _read_pool(value: object, kind: type[_Network], example: str, prefixes: tuple[int, int]) -> _Network:
    """Check a pool as the engine does: its size, and its addresses as sources of packets."""
    if isinstance(value, kind):
        pool = value
    else:
        text = _text(value, "a network")
        try:
            pool = kind(text)
        except ValueError as error:
            raise ValueError(f"{quote(value)} is not a network such as {example} ({_reason(error)})") from None
    if not prefixes[0] <= pool.prefixlen <= prefixes[1]:
        raise ValueError(f"{pool} is not between /{prefixes[0]} and /{prefixes[1]}")
    first, last = pool[1], pool[-2]
    if any(address in network for address in (first, last) for network in _NO_SOURCES):
        raise ValueError(f"{pool} holds addresses that no packet may come from")
    return pool


def _reason(error: ValueError) -> str:
    return "host bits are set" if "host bits" in str(error) else "malformed"


def read_path(value: object) -> Path:
    """A file path, ``~`` expanded; relative paths count from the working directory. Raises ``ValueError``."""
    if isinstance(value, Path):
        return value
    text = _text(value, "a path")
    if not text:
        raise ValueError("an empty path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{quote(value)}: no such home directory") from None


def read_flag(value: object) -> bool:
    """A yes or no: a boolean, or ``true/false``, ``yes/no``, ``on/off``, ``1/0`` as text. Raises ``ValueError``."""
    if isinstance(value, bool):
        return value
    text = _text(value, "true or false").lower()
    if text in ("true", "yes", "on", "1"):
        return True
    if text in ("false", "no", "off", "0"):
        return False
    raise ValueError(f"{quote(value)} is not true or false")


def read_choice(*choices: str) -> Callable[[object], str]:
    """A reader of one word of ``choices``, in any case."""
    listed = ", ".join(choices)

    def read(value: object) -> str:
        word = value.strip().lower() if isinstance(value, str) else None
        if word not in choices:
            raise ValueError(f"{quote(value)} is not one of {listed}")
        return word

    return read


def read_reference(value: object) -> str:
    """A Python object as ``module:attribute``. Raises ``ValueError``."""
    text = _text(value, "module:attribute")
    module, _, attribute = text.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
        raise ValueError(f"{quote(value)} is not module:attribute")
    return text


def read_tables(value: object) -> tuple[object, ...]:
    """The tables of ``[[name]]`` in a file, each still to be checked. Raises ``ValueError``."""
    if not isinstance(value, list | tuple):
        raise ValueError("can only be written as tables in the configuration file")
    return tuple(value)


def show_duration(seconds: float) -> str:
    """A duration as ``read_duration`` reads it, in the largest unit that is exact, or else to the millisecond."""
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= length and seconds % length == 0:
            return f"{int(seconds // length)}{unit}"
    number, unit = (seconds * 1000, "ms") if 0 < seconds < 1 else (seconds, "s")
    return f"{number:.3f}".rstrip("0").rstrip(".") + unit


def show_size(size: int) -> str:
    """A size as ``read_size`` reads it, in the largest unit that is exact."""
    for unit, length in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= length and size % length == 0:
            return f"{size // length}{unit}"
    return str(size)


Duration = Annotated[float, Reads(read_duration)]
Integer = Annotated[int, Reads(read_integer)]
Size = Annotated[int, Reads(read_size)]
Flag = Annotated[bool, Reads(read_flag)]
Address = Annotated[IPAddress, Reads(read_address)]
Addresses = Annotated[tuple[IPAddress, ...], Reads(read_addresses)]
Places = Annotated[tuple[str, ...], Reads(read_places)]
Command = Annotated[tuple[str, ...], Reads(read_command)]
Hosts = Annotated[tuple[str, ...], Reads(read_hosts)]
Pool4 = Annotated[IPv4Network, Reads(read_pool4)]
Pool6 = Annotated[IPv6Network, Reads(read_pool6)]
FilePath = Annotated[Path, Reads(read_path)]
Reference = Annotated[str, Reads(read_reference)]
Tables = Annotated[tuple[Any, ...], Reads(read_tables)]
