"""ztna-v1 signaling on QUIC streams: messages that prepare a direct path (docs/protocol.md section 4).

Flow, all on stream 0 (client-initiated, bidirectional, never finished)::

    agent                      server                     connector
      | -- CandidateOffer ------> | -- the same bytes ------> |   no connector: Error 2
      |                           | <------ CandidateAnswer - |   no session: Error 3
      | <- StartPunching -------- | -- StartPunching -------> |   each with the other's candidates
      | -- PunchingResult ------> | <------ PunchingResult -- |   forwarded to the other side

Frame: length (4, big endian, at most 65536), then that many bytes of payload. Payload: bincode 1.3 with its
defaults, that is little-endian fixed-width integers, enum tag u32, String and Vec with a u64 length, Option tag
u8, bool u8. Bytes after the message inside a frame are ignored::

    SocketAddr       u32 0 | octets (4) | port u16      or   u32 1 | octets (16) | port u16
    Candidate        kind u32 | SocketAddr | priority u32 | foundation String | related Option<SocketAddr>
    CandidateOffer   u32 0 | session u64 | service String | Vec<Candidate>
    CandidateAnswer  u32 1 | session u64 | Vec<Candidate>
    StartPunching    u32 2 | session u64 | start_delay_ms u64 | Vec<Candidate>
    PunchingResult   u32 3 | session u64 | success bool | working_address Option<SocketAddr>
    Error            u32 4 | session Option<u64> | code u32 | message String

Every length is checked against the bytes that are there before anything is made of it, so a message costs no
more than the frame it came in.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from intermediate_server.errors import TooManyCandidates, WireError
from intermediate_server.types import Address

MAX_FRAME_BYTES = 65_536
"""Largest payload of a frame, its length field not counted (docs/protocol.md section 4.1)."""

MAX_CANDIDATES = 64
"""Most candidates of one message (docs/protocol.md section 4.2)."""

_MIN_CANDIDATE_BYTES = 27
"""Bytes of the smallest candidate: kind 4, IPv4 address 10, priority 4, empty foundation 8, no related 1."""

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_LENGTH = struct.Struct("!I")
_SESSION = struct.Struct("<IQ")
_START = struct.Struct("<IQQ")
_V4 = struct.Struct("<I4sH")
_V6 = struct.Struct("<I16sH")
_PRIORITY_AND_LENGTH = struct.Struct("<IQ")

_T = TypeVar("_T")


class CandidateKind(enum.IntEnum):
    """Where a candidate address comes from (RFC 8445 section 5.1.1; docs/protocol.md section 4.2)."""

    HOST = 0
    SERVER_REFLEXIVE = 1
    PEER_REFLEXIVE = 2
    RELAY = 3


_KINDS = tuple(CandidateKind)


class ErrorCode(enum.IntEnum):
    """The error of a session (docs/protocol.md section 4.3); a peer may send a code that is not listed."""

    UNKNOWN = 0
    SERVICE_NOT_FOUND = 1
    NO_CONNECTOR = 2
    SESSION_NOT_FOUND = 3
    TIMEOUT = 4
    INVALID = 5
    REJECTED = 6


@dataclass(frozen=True, slots=True)
class Candidate:
    """One address at which a peer may be reached (docs/protocol.md section 4.2)."""

    kind: CandidateKind
    address: Address
    priority: int
    """0 to 2**32 - 1; higher is tried first."""
    foundation: str
    related: Address | None = None
    """The local address behind a reflexive or relayed one."""


@dataclass(frozen=True, slots=True)
class CandidateOffer:
    """An agent asks for a direct path to the connector of a service."""

    session: int
    """Chosen by the agent, 0 to 2**64 - 1; unique for it only."""
    service: str
    candidates: tuple[Candidate, ...]
    encoded: bytes = field(default=b"", repr=False, compare=False)
    """The list of candidates as it came, of a message that was decoded."""


@dataclass(frozen=True, slots=True)
class CandidateAnswer:
    """The connector's own addresses, for the server; never forwarded as it is."""

    session: int
    candidates: tuple[Candidate, ...]
    encoded: bytes = field(default=b"", repr=False, compare=False)
    """The list of candidates as it came, of a message that was decoded."""


@dataclass(frozen=True, slots=True)
class StartPunching:
    """Both sides begin sending probes, each to the other's candidates."""

    session: int
    start_delay_ms: int
    peer_candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class PunchingResult:
    """The result of the probes."""

    session: int
    success: bool
    working_address: Address | None = None


@dataclass(frozen=True, slots=True)
class SignalingError:
    """The session, or the attempt to make one, is over."""

    session: int | None
    code: int
    """0 to 2**32 - 1, see :class:`ErrorCode`."""
    message: str


Message = CandidateOffer | CandidateAnswer | StartPunching | PunchingResult | SignalingError


def frame(payload: bytes) -> bytes:
    """The frame around a payload. Raises ``ValueError`` over 65536 bytes."""
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"signaling payload of {len(payload)} bytes; at most {MAX_FRAME_BYTES} fit")
    return _LENGTH.pack(len(payload)) + payload


def encode(message: Message) -> bytes:
    """The payload of a message, to be put into :func:`frame`. Raises ``ValueError`` for a number out of range."""
    try:
        match message:
            case CandidateOffer(session, service, candidates):
                return b"".join((_U32.pack(0), _U64.pack(session), _string(service), _vec(candidates)))
            case CandidateAnswer(session, candidates):
                return b"".join((_U32.pack(1), _U64.pack(session), _vec(candidates)))
            case StartPunching(session, delay, candidates):
                return b"".join((_U32.pack(2), _U64.pack(session), _U64.pack(delay), _vec(candidates)))
            case PunchingResult(session, success, working):
                return b"".join((_U32.pack(3), _U64.pack(session), bytes((success,)), _option(working)))
            case SignalingError(maybe, code, text):
                session_field = b"\0" if maybe is None else b"\1" + _U64.pack(maybe)
                return b"".join((_U32.pack(4), session_field, _U32.pack(code), _string(text)))
    except struct.error as error:
        raise ValueError(f"{type(message).__name__} holds a number its field cannot: {error}") from None


def encode_candidates(candidates: tuple[Candidate, ...]) -> bytes:
    """A list of candidates, as it stands in a message. Raises ``ValueError`` for a number out of range."""
    try:
        return _vec(candidates)
    except struct.error as error:
        raise ValueError(f"a candidate holds a number its field cannot: {error}") from None


def decode_candidates(encoded: bytes) -> tuple[Candidate, ...]:
    """Read a list of candidates; bytes after it are ignored. Raises ``WireError``."""
    reader = _Reader(encoded)
    return reader.candidates(reader.u64())


def encode_offer(session: int, service: str, encoded: bytes) -> bytes:
    """The payload of a CandidateOffer around a list of candidates that is encoded already."""
    return _SESSION.pack(0, session) + _string(service) + encoded


def encode_start(session: int, delay_ms: int, encoded: bytes) -> bytes:
    """The payload of a StartPunching around a list of candidates that is encoded already."""
    return _START.pack(2, session, delay_ms) + encoded


def with_session(payload: bytes, session: int) -> bytes:
    """The payload of an offer or an answer with another session id, all other bytes as they are."""
    return payload[: _U32.size] + _U64.pack(session) + payload[_SESSION.size :]


def decode(payload: bytes) -> Message:
    """Read the payload of one frame; bytes after the message are ignored.

    Raises ``TooManyCandidates`` for an offer or answer of more than 64 candidates, before it reads any, and
    ``WireError`` for any other fault.
    """
    reader = _Reader(payload)
    match reader.u32():
        case 0:
            session, service = reader.u64(), reader.string()
            return CandidateOffer(session, service, *reader.candidates_of(session, offer=True))
        case 1:
            session = reader.u64()
            return CandidateAnswer(session, *reader.candidates_of(session, offer=False))
        case 2:
            return StartPunching(reader.u64(), reader.u64(), reader.candidates(reader.u64()))
        case 3:
            return PunchingResult(reader.u64(), reader.flag("bool"), reader.option(reader.address))
        case 4:
            return SignalingError(reader.option(reader.u64), reader.u32(), reader.string())
        case tag:
            raise WireError(f"unknown signaling message {tag}")


class _Reader:
    """Takes bincode values off the front of a payload (docs/protocol.md section 4.2)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        left = len(self._data) - self._at
        if count > left:
            raise WireError(f"signaling message ends early: {count} bytes wanted, {left} left")
        self._at += count
        return self._data[self._at - count : self._at]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def flag(self, what: str) -> bool:
        value = self.take(1)[0]
        if value > 1:
            raise WireError(f"{what} tag {value} in a signaling message; only 0 and 1 exist")
        return bool(value)

    def option(self, read: Callable[[], _T]) -> _T | None:
        return read() if self.flag("Option") else None

    def string(self) -> str:
        return self.text(self.u64())

    def text(self, length: int) -> str:
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise WireError("a string in a signaling message is not UTF-8") from None

    def address(self) -> Address:
        family = int.from_bytes(self._data[self._at : self._at + 4], "little")
        try:
            if family == 0:
                _, octets, port = _V4.unpack_from(self._data, self._at)
                self._at += _V4.size
                return Address(IPv4Address(octets), port)
            if family == 1:
                _, octets, port = _V6.unpack_from(self._data, self._at)
                self._at += _V6.size
                v6 = IPv6Address(octets)
                return Address(v6.ipv4_mapped or v6, port)
        except struct.error:
            raise self._early() from None
        raise WireError(f"unknown address family {family} in a signaling message")

    def candidate(self) -> Candidate:
        kind = self.u32()
        if kind > CandidateKind.RELAY:
            raise WireError(f"unknown candidate kind {kind}")
        address = self.address()
        try:
            priority, length = _PRIORITY_AND_LENGTH.unpack_from(self._data, self._at)
        except struct.error:
            raise self._early() from None
        self._at += _PRIORITY_AND_LENGTH.size
        return Candidate(_KINDS[kind], address, priority, self.text(length), self.option(self.address))

    def candidates(self, count: int) -> tuple[Candidate, ...]:
        # Before anything is built: a frame has room for 2,400.
        if count * _MIN_CANDIDATE_BYTES > len(self._data) - self._at:
            raise WireError(f"{count} candidates cannot fit into the rest of the signaling message")
        if count > MAX_CANDIDATES:
            raise WireError(f"{count} candidates in a signaling message; at most {MAX_CANDIDATES} are allowed")
        return tuple([self.candidate() for _ in range(count)])

    def candidates_of(self, session: int, *, offer: bool) -> tuple[tuple[Candidate, ...], bytes]:
        """The list of a session's message, and its bytes."""
        begin = self._at
        count = self.u64()
        try:
            return self.candidates(count), self._data[begin : self._at]
        except WireError as error:
            if count > MAX_CANDIDATES:
                raise TooManyCandidates(str(error), session=session, offer=offer) from None
            raise

    def _early(self) -> WireError:
        return WireError(f"signaling message ends early: {len(self._data) - self._at} bytes left of a field")


def _string(text: str) -> bytes:
    raw = text.encode()
    return _U64.pack(len(raw)) + raw


def _address(address: Address) -> bytes:
    host = address.host
    if isinstance(host, IPv6Address) and host.ipv4_mapped is not None:
        host = host.ipv4_mapped
    return _U32.pack(0 if host.version == 4 else 1) + host.packed + _U16.pack(address.port)


def _option(address: Address | None) -> bytes:
    return b"\0" if address is None else b"\1" + _address(address)


def _candidate(candidate: Candidate) -> bytes:
    return b"".join(
        (
            _U32.pack(candidate.kind),
            _address(candidate.address),
            _U32.pack(candidate.priority),
            _string(candidate.foundation),
            _option(candidate.related),
        )
    )


def _vec(candidates: tuple[Candidate, ...]) -> bytes:
    return _U64.pack(len(candidates)) + b"".join(map(_candidate, candidates))
