"""Candidates: the relay edits the list of one side before the other side sees it.

A candidate makes a peer send packets to an address that somebody else names. So an address passes only where the other
side could reach it and it can belong to the party itself. A list that stays as it was keeps its bytes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from intermediate_server.types import Address
from intermediate_server.wire.signaling import Candidate, CandidateKind, encode_candidates

_K = TypeVar("_K")

MOST = 32
"""Candidates that one side is told of the other."""

MAX_FOUNDATION_BYTES = 64
OBSERVED_PRIORITY = 1_694_498_815
"""Priority of the observed address: a server reflexive candidate of the first component (RFC 8445 section 5.1.2.1)."""

KIND_NAMES = {
    CandidateKind.HOST: "host",
    CandidateKind.SERVER_REFLEXIVE: "srflx",
    CandidateKind.PEER_REFLEXIVE: "prflx",
    CandidateKind.RELAY: "relay",
}
"""Names of kinds in foundations (RFC 8839 section 5.1), records and metrics."""


class Removal(enum.StrEnum):
    """The reason for which a candidate was removed."""

    RELAY_KIND = "relay_kind"
    """Of kind 3: nobody relays for these clients but this relay."""
    PORT = "port"
    """Port 0."""
    MULTICAST = "multicast"
    LINK_LOCAL = "link_local"
    RESERVED = "reserved"
    """An address that no host has: 0.0.0.0/8 and 240.0.0.0/4, broadcast among them."""
    RELAY = "relay_address"
    """An address of this relay."""
    LOOPBACK = "loopback"
    PRIVATE = "private"
    """A private address that the other side is not known to reach."""
    REPEATED = "repeated"
    """The address of an earlier candidate."""
    BEYOND = "beyond_most"
    """Of lower priority than the 32 that pass."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many candidates of one side passed, were replaced, removed and added."""

    passed: dict[CandidateKind, int] = field(default_factory=dict)
    """Told to the other side, the replaced ones among them."""
    replaced: dict[CandidateKind, int] = field(default_factory=dict)
    """Told with the observed host in place of an unspecified one, or with a shorter foundation."""
    removed: dict[tuple[CandidateKind, Removal], int] = field(default_factory=dict)
    added: int = 0
    """1 where the observed address was added."""

    def as_dict(self) -> dict[str, object]:
        """For JSON: by name of kind, with the reasons of the removed."""
        given = dict(self.passed)
        removed: dict[str, dict[str, int]] = {}
        for (kind, why), count in self.removed.items():
            given[kind] = given.get(kind, 0) + count
            removed.setdefault(KIND_NAMES[kind], {})[str(why)] = count
        return {
            "given": _by_name(given),
            "passed": _by_name(self.passed),
            "replaced": _by_name(self.replaced),
            "removed": removed,
            "added": self.added,
        }


@dataclass(frozen=True, slots=True)
class Edited:
    """A list of at most 32 candidates, as the other side is told it."""

    encoded: bytes
    """As it came where nothing changed."""
    changed: bool
    families: frozenset[int]
    """The IP versions of the list; none of an empty one."""
    counts: Counts


def edit(
    candidates: tuple[Candidate, ...],
    encoded: bytes,
    *,
    party: Address,
    other: Address,
    relay: frozenset[Address] = frozenset(),
    always_private: bool = False,
) -> Edited:
    """Edit the list of a party for the other side.

    ``encoded`` is the list as it came, ``party`` and ``other`` are the observed addresses of the two sides, ``relay``
    those of this relay. Private addresses pass where both sides are seen at one address or one of them is itself seen
    at a private one; with ``always_private`` they always pass.
    """
    seen = _nature(party.host), _nature(other.host)
    banned = _NEVER
    if seen != (Removal.LOOPBACK, Removal.LOOPBACK):
        banned |= {Removal.LOOPBACK}
    if not (always_private or party.host == other.host or Removal.PRIVATE in seen):
        banned |= {Removal.PRIVATE}
    counts = Counts()
    kept: dict[Address, Candidate] = {}
    for given in candidates:
        candidate = _specified(given, party)
        address = candidate.address
        nature = _nature(address.host)
        removal: Removal | None
        if candidate.kind is CandidateKind.RELAY:
            removal = Removal.RELAY_KIND
        elif address.port == 0:
            removal = Removal.PORT
        elif address in relay:
            removal = Removal.RELAY
        elif nature in banned:
            removal = nature
        elif address in kept:
            removal = Removal.REPEATED
        else:
            removal = None
            kept[address] = candidate
        if removal is not None:
            _count(counts.removed, (candidate.kind, removal))
    addable = seen[0] is not Removal.LOOPBACK and seen[0] not in banned and party.port != 0 and party not in relay
    _cut(kept, MOST, counts)
    if addable and party not in kept:
        _cut(kept, MOST - 1, counts)
        kept[party] = Candidate(CandidateKind.SERVER_REFLEXIVE, party, OBSERVED_PRIORITY, f"srflx_{party.host}")
        counts = replace(counts, added=1)
    result = tuple([_named(candidate) for candidate in kept.values()])
    known = set(map(id, candidates))
    for candidate in result[: len(result) - counts.added]:
        _count(counts.passed, candidate.kind)
        if id(candidate) not in known:
            _count(counts.replaced, candidate.kind)
    changed = result != candidates
    families = frozenset([candidate.address.host.version for candidate in result])
    return Edited(encode_candidates(result) if changed else encoded, changed, families, counts)


def _specified(candidate: Candidate, party: Address) -> Candidate:
    """The same candidate, with the observed host in place of an unspecified one."""
    if int(candidate.address.host) != 0:
        return candidate
    return replace(candidate, address=Address(party.host, candidate.address.port))


def _named(candidate: Candidate) -> Candidate:
    """The same candidate, with its kind and address in place of a long foundation."""
    name = candidate.foundation
    # Most are short enough to need no encoding.
    if len(name) <= MAX_FOUNDATION_BYTES // 4 or len(name.encode()) <= MAX_FOUNDATION_BYTES:
        return candidate
    return replace(candidate, foundation=f"{KIND_NAMES[candidate.kind]}_{candidate.address.host}")


def _cut(kept: dict[Address, Candidate], most: int, counts: Counts) -> None:
    """Leave the highest priorities; of equal ones those that came first."""
    if len(kept) <= most:
        return
    for candidate in sorted(kept.values(), key=lambda one: -one.priority)[most:]:
        del kept[candidate.address]
        _count(counts.removed, (candidate.kind, Removal.BEYOND))


def _nature(host: IPv4Address | IPv6Address) -> Removal | None:
    """The reason for which an address may have to be removed; None for a public one.

    An explicit list: ``is_private`` of the standard library holds documentation, benchmarks and more.
    """
    value = int(host)
    if isinstance(host, IPv4Address):
        first = value >> 24
        if first == 127:
            return Removal.LOOPBACK
        if first == 10 or value >> 20 == 0xAC1 or value >> 16 == 0xC0A8 or value >> 22 == 0x6440 >> 6:
            return Removal.PRIVATE
        if value >> 16 == 0xA9FE:
            return Removal.LINK_LOCAL
        if first >= 224:
            return Removal.MULTICAST if first < 240 else Removal.RESERVED
        return Removal.RESERVED if first == 0 else None
    if value <= 1:
        return Removal.LOOPBACK if value else Removal.RESERVED
    if value >> 121 == 0xFC >> 1:
        return Removal.PRIVATE
    if value >> 118 == 0xFE80 >> 6:
        return Removal.LINK_LOCAL
    return Removal.MULTICAST if value >> 120 == 0xFF else None


_NEVER: frozenset[Removal | None] = frozenset({Removal.MULTICAST, Removal.LINK_LOCAL, Removal.RESERVED})


def _count(counts: dict[_K, int], key: _K) -> None:
    counts[key] = counts.get(key, 0) + 1


def _by_name(counts: dict[CandidateKind, int]) -> dict[str, int]:
    return {KIND_NAMES[kind]: count for kind, count in counts.items()}
