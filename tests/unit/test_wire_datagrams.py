"""The DATAGRAM codec against the shared vectors and at its edges."""

from __future__ import annotations

import json
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest

from intermediate_server.types import Address, Role
from intermediate_server.wire import datagrams
from intermediate_server.wire.datagrams import (
    Ack,
    Message,
    Nack,
    NackStatus,
    NotUtf8Registration,
    ObservedAddress,
    Register,
    ServiceRouted,
)

VECTORS_DIR = Path(__file__).parent.parent / "vectors"
VECTORS: list[dict[str, Any]] = json.loads((VECTORS_DIR / "datagrams.json").read_text())["vectors"]
CLASSES: list[dict[str, Any]] = json.loads((VECTORS_DIR / "classify.json").read_text())["vectors"]


def expected(decoded: dict[str, Any], data: bytes) -> Message | NotUtf8Registration | bytes | None:
    match decoded["type"]:
        case "register":
            return Register(Role(decoded["role"]), decoded["service"])
        case "not_utf8":
            return NotUtf8Registration(Role(decoded["role"]))
        case "service_routed":
            return ServiceRouted(decoded["service"], bytes.fromhex(decoded["packet"]))
        case "ack":
            return Ack(decoded["service"])
        case "nack":
            return Nack(decoded["status"], decoded["service"])
        case "observed":
            return ObservedAddress(Address(ip_address(decoded["host"]), decoded["port"]))
        case "packet":
            return data
        case "ignored":
            return None
        case unknown:
            raise AssertionError(unknown)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vector(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    message = expected(vector["decoded"], data)
    if vector["direction"] == "to_client":
        assert datagrams.decode_server(data) == message
    elif isinstance(message, ServiceRouted) or data[:1] == b"\x2f":
        assert datagrams.decode_service_routed(data) == message
        assert datagrams.decode_control(data) is None
    else:
        assert datagrams.decode_control(data) == message
    if vector["canonical"]:
        assert isinstance(message, Message)
        assert datagrams.encode(message) == data


@pytest.mark.parametrize("vector", CLASSES, ids=lambda vector: vector["name"])
def test_the_engine_sends_up_exactly_what_the_codec_reads(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    assert (vector["class"] == "control") == (datagrams.decode_control(data) is not None)
    if vector["class"] == "service_routed":
        routed = datagrams.decode_service_routed(data)
        service = bytes.fromhex(vector["service_hex"])
        try:
            assert routed == ServiceRouted(service.decode(), data[vector["packet_offset"] :])
        except UnicodeDecodeError:
            assert routed is None


def test_an_unreadable_registration_is_refused_without_an_id() -> None:
    assert datagrams.encode(Nack(NackStatus.NOT_UTF8)) == bytes.fromhex("130100")


def test_a_mapped_address_never_travels_as_ipv6() -> None:
    mapped = Address(IPv6Address("::ffff:198.51.100.1"), 54321)
    assert datagrams.encode(ObservedAddress(mapped)) == bytes.fromhex("01c6336401d431")


@pytest.mark.parametrize("service", ["a" * 256, "ü" * 128])
def test_a_service_id_over_255_bytes_is_the_callers_mistake(service: str) -> None:
    for message in (Register(Role.AGENT, service), Ack(service), Nack(2, service), ServiceRouted(service, b"")):
        with pytest.raises(ValueError, match="256 bytes"):
            datagrams.encode(message)


@pytest.mark.parametrize(
    "message",
    [
        Ack("\ud800"),
        Nack(256, "web"),
        Nack(-1, "web"),
        ObservedAddress(Address(ip_address("198.51.100.1"), 65_536)),
        ObservedAddress(Address(ip_address("2001:db8::1"), -1)),
    ],
    ids=repr,
)
def test_what_cannot_be_written_is_refused(message: Message) -> None:
    with pytest.raises(ValueError):
        datagrams.encode(message)
