"""The signaling codec against the shared vectors, and the frame reader on a hostile stream."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from intermediate_server.errors import TooManyCandidates, WireError
from intermediate_server.types import Address
from intermediate_server.wire import signaling
from intermediate_server.wire.signaling import (
    Candidate,
    CandidateAnswer,
    CandidateKind,
    CandidateOffer,
    Message,
    PunchingResult,
    SignalingError,
    StartPunching,
)

VECTORS_FILE = Path(__file__).parent.parent / "vectors" / "signaling.json"
VECTORS: list[dict[str, Any]] = json.loads(VECTORS_FILE.read_text())["vectors"]


def address(entry: dict[str, Any] | None) -> Address | None:
    return None if entry is None else Address(ip_address(entry["host"]), entry["port"])


def candidates(entries: list[dict[str, Any]]) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(
            CandidateKind(entry["kind"]),
            Address(ip_address(entry["host"]), entry["port"]),
            entry["priority"],
            entry["foundation"],
            address(entry["related"]),
        )
        for entry in entries
    )


def expected(decoded: dict[str, Any]) -> Message:
    match decoded["type"]:
        case "offer":
            return CandidateOffer(decoded["session"], decoded["service"], candidates(decoded["candidates"]))
        case "answer":
            return CandidateAnswer(decoded["session"], candidates(decoded["candidates"]))
        case "start":
            return StartPunching(decoded["session"], decoded["start_delay_ms"], candidates(decoded["candidates"]))
        case "result":
            return PunchingResult(decoded["session"], decoded["success"], address(decoded["working"]))
        case "failed":
            return SignalingError(decoded["session"], decoded["code"], decoded["message"])
        case unknown:
            raise AssertionError(unknown)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vector(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    payload = data[4:]
    assert signaling.frame(payload) == data
    if vector["decoded"]["type"] == "error":
        with pytest.raises(WireError):
            signaling.decode(payload)
        return
    message = expected(vector["decoded"])
    assert signaling.decode(payload) == message
    if vector["canonical"]:
        assert signaling.frame(signaling.encode(message)) == data


def test_a_frame_holds_65536_bytes() -> None:
    assert signaling.frame(bytes(65_536))[:4] == bytes.fromhex("00010000")
    with pytest.raises(ValueError, match="65537"):
        signaling.frame(bytes(65_537))


def test_every_cut_of_every_message_is_an_error() -> None:
    for vector in VECTORS:
        if vector["canonical"]:
            payload = bytes.fromhex(vector["hex"])[4:]
            for end in range(len(payload)):
                with pytest.raises(WireError):
                    signaling.decode(payload[:end])


@pytest.mark.parametrize(
    "message",
    [
        CandidateOffer(2**64, "web", ()),
        CandidateAnswer(-1, ()),
        StartPunching(1, 2**64, ()),
        SignalingError(None, 2**32, ""),
        SignalingError(1, 0, "\ud800"),
        PunchingResult(1, True, Address(ip_address("198.51.100.1"), 65_536)),
    ],
    ids=repr,
)
def test_what_cannot_be_written_is_refused(message: Message) -> None:
    with pytest.raises(ValueError):
        signaling.encode(message)


def listing(count: int, announced: int | None = None) -> bytes:
    one = Candidate(CandidateKind.HOST, Address(ip_address("203.0.113.7"), 1), 1, "")
    encoded = signaling.encode_candidates((one,) * count)
    return (count if announced is None else announced).to_bytes(8, "little") + encoded[8:]


@pytest.mark.parametrize("count", [65, 1_150, 2_400])
@pytest.mark.parametrize("offer", [True, False], ids=["offer", "answer"])
def test_more_than_64_candidates_are_refused_with_the_session(
    count: int, offer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = (0).to_bytes(4, "little") if offer else (1).to_bytes(4, "little")
    service = (3).to_bytes(8, "little") + b"web" if offer else b""
    payload = head + (42).to_bytes(8, "little") + service + listing(count)
    assert len(payload) <= signaling.MAX_FRAME_BYTES
    monkeypatch.setattr(signaling, "Candidate", None)  # none is built before the count is checked
    with pytest.raises(TooManyCandidates, match=str(count)) as refusal:
        signaling.decode(payload)
    assert (refusal.value.session, refusal.value.offer) == (42, offer)


def test_64_candidates_are_read() -> None:
    message = signaling.decode(signaling.encode_start(1, 2, listing(64)))
    assert isinstance(message, StartPunching)
    assert len(message.peer_candidates) == 64


def test_too_many_candidates_of_a_start_are_malformed_only() -> None:
    with pytest.raises(WireError) as refusal:
        signaling.decode(signaling.encode_start(1, 2, listing(65)))
    assert not isinstance(refusal.value, TooManyCandidates)


def test_a_list_keeps_its_bytes_without_what_trails() -> None:
    encoded = listing(3)
    message = signaling.decode(signaling.encode_offer(7, "web", encoded) + b"trailing")
    assert isinstance(message, CandidateOffer)
    assert message.encoded == encoded
    assert signaling.decode_candidates(encoded) == message.candidates


def test_another_session_id_changes_nothing_else() -> None:
    payload = signaling.encode_offer(7, "web", listing(3)) + b"trailing"
    other = signaling.with_session(payload, 2**64 - 1)
    assert other == signaling.encode_offer(2**64 - 1, "web", listing(3)) + b"trailing"
