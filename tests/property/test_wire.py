"""Codec properties: what is written is read back, and no bytes do more than raise ``WireError``."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from intermediate_server.errors import WireError
from intermediate_server.types import Address, Role
from intermediate_server.wire import datagrams, signaling

ports = st.integers(0, 0xFFFF)
v4 = st.builds(Address, st.ip_addresses(v=4), ports)
v6 = st.builds(Address, st.ip_addresses(v=6).filter(lambda host: getattr(host, "ipv4_mapped", None) is None), ports)
addresses = v4 | v6
texts = st.text(st.characters(codec="utf-8"))
services = texts.filter(lambda text: len(text.encode()) <= datagrams.MAX_SERVICE_BYTES)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)

candidates = st.lists(
    st.builds(
        signaling.Candidate, st.sampled_from(signaling.CandidateKind), addresses, u32, texts, st.none() | addresses
    ),
    max_size=8,
).map(tuple)
messages = st.one_of(
    st.builds(signaling.CandidateOffer, u64, texts, candidates),
    st.builds(signaling.CandidateAnswer, u64, candidates),
    st.builds(signaling.StartPunching, u64, u64, candidates),
    st.builds(signaling.PunchingResult, u64, st.booleans(), st.none() | addresses),
    st.builds(signaling.SignalingError, st.none() | u64, u32, texts),
)
for_clients = st.one_of(
    st.builds(datagrams.ObservedAddress, addresses),
    st.builds(datagrams.Ack, services),
    st.builds(datagrams.Nack, st.integers(0, 255), services),
)


@given(st.builds(datagrams.Register, st.sampled_from(Role), services), st.binary(max_size=8))
def test_registrations_round_trip_whatever_trails(message: datagrams.Register, trailing: bytes) -> None:
    assert datagrams.decode_control(datagrams.encode(message) + trailing) == message


@given(for_clients, st.binary(max_size=8))
def test_answers_round_trip_whatever_trails(message: datagrams.Message, trailing: bytes) -> None:
    assert datagrams.decode_server(datagrams.encode(message) + trailing) == message


@given(st.builds(datagrams.ServiceRouted, services, st.binary(min_size=1)))
def test_service_routed_packets_round_trip(message: datagrams.ServiceRouted) -> None:
    assert datagrams.decode_service_routed(datagrams.encode(message)) == message


@given(st.sampled_from([b"", b"\x01", b"\x02", b"\x10", b"\x11", b"\x12", b"\x13", b"\x2f"]), st.binary(max_size=300))
def test_no_datagram_raises_and_what_is_read_can_be_written(first: bytes, rest: bytes) -> None:
    data = first + rest
    for message in (
        datagrams.decode_control(data),
        datagrams.decode_service_routed(data),
        datagrams.decode_server(data),
    ):
        if isinstance(message, datagrams.Message):
            datagrams.encode(message)


@given(messages, st.binary(max_size=8))
def test_signaling_messages_round_trip_whatever_trails(message: signaling.Message, trailing: bytes) -> None:
    assert signaling.decode(signaling.encode(message) + trailing) == message


@given(st.integers(0, 5).map(lambda tag: tag.to_bytes(4, "little")), st.binary(max_size=200))
def test_signaling_bytes_are_read_or_refused(tag: bytes, rest: bytes) -> None:
    try:
        message = signaling.decode(tag + rest)
    except WireError:
        return
    assert signaling.decode(signaling.encode(message)) == message


@given(messages, st.data())
def test_a_damaged_message_is_read_or_refused(message: signaling.Message, data: st.DataObject) -> None:
    payload = bytearray(signaling.encode(message))
    for position in data.draw(st.lists(st.integers(0, len(payload) - 1), min_size=1, max_size=4)):
        payload[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        signaling.decode(bytes(payload))
