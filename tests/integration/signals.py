"""Signaling as test peers speak it: frames, and messages with few words."""

from __future__ import annotations

from intermediate_server.wire.signaling import (
    Candidate,
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


def offer(service: str, *candidates: Candidate, session: int = 42) -> bytes:
    """A framed offer."""
    return framed(CandidateOffer(session, service, candidates))
