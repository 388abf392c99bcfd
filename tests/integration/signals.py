"""Signaling as test peers speak it: frames, and messages with few words."""

from __future__ import annotations

from intermediate_server.types import Address
from intermediate_server.wire.signaling import (
    Candidate,
    CandidateAnswer,
    CandidateKind,
    CandidateOffer,
    Message,
    encode,
    frame,
)


class FrameReader:
    """Cuts what a stream brings into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads of the frames that are whole now."""
        self._buffer += data
        payloads = []
        while len(self._buffer) >= 4 and len(self._buffer) >= 4 + int.from_bytes(self._buffer[:4]):
            end = 4 + int.from_bytes(self._buffer[:4])
            payloads.append(bytes(self._buffer[4:end]))
            del self._buffer[:end]
        return payloads


def framed(message: Message) -> bytes:
    """A message in its frame."""
    return frame(encode(message))


def host(address: str, port: int, *, priority: int = 2_130_706_431) -> Candidate:
    """A host candidate as the clients in the field write it."""
    return Candidate(CandidateKind.HOST, Address.of((address, port)), priority, f"host_{address}")


def offer(service: str, *candidates: Candidate, session: int = 42) -> bytes:
    """A framed offer."""
    return framed(CandidateOffer(session, service, candidates))


def answer(session: int, *candidates: Candidate) -> bytes:
    """A framed answer."""
    return framed(CandidateAnswer(session, candidates))
