"""Revoked serial numbers by the million: 21 bytes for each, where a set of tuples takes 200."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import groupby

WIDTH = 21
"""Bytes of a packed serial number: RFC 5280 section 4.1.2.2 allows 20, which may be signed by mistake."""


class Serials(Set[tuple[bytes, int]]):
    """Pairs of an issuer's name, DER, and a serial number; immutable."""

    def __init__(
        self, packed: Mapping[bytes, bytes] | None = None, odd: frozenset[tuple[bytes, int]] = frozenset()
    ) -> None:
        """``packed`` has the result of :func:`pack` for each issuer, ``odd`` the pairs whose serial does not fit."""
        self._packed = dict(packed or {})
        self._odd = odd

    @classmethod
    def of(cls, pairs: Iterable[tuple[bytes, int]]) -> Serials:
        """From the pairs themselves."""
        by_issuer: dict[bytes, list[int]] = {}
        for issuer, serial in pairs:
            by_issuer.setdefault(issuer, []).append(serial)
        packed, odd = {}, set()
        for issuer, serials in by_issuer.items():
            packed[issuer], rest = pack(serials)
            odd |= {(issuer, serial) for serial in rest}
        return cls(packed, frozenset(odd))

    @classmethod
    def _from_iterable(cls, it: Iterable[object]) -> frozenset[object]:  # type: ignore[override]  # what & and | give
        return frozenset(it)

    @property
    def issuers(self) -> frozenset[bytes]:
        """The issuers of revoked certificates."""
        return frozenset(issuer for issuer, blob in self._packed.items() if blob) | {issuer for issuer, _ in self._odd}

    @property
    def packed(self) -> Mapping[bytes, bytes]:
        """For each issuer its packed serial numbers."""
        return self._packed

    @property
    def odd(self) -> frozenset[tuple[bytes, int]]:
        """The pairs that are not packed."""
        return self._odd

    def __contains__(self, pair: object) -> bool:
        if not isinstance(pair, tuple) or len(pair) != 2:
            return False
        issuer, serial = pair
        blob = self._packed.get(issuer, b"")
        try:
            wanted = serial.to_bytes(WIDTH, "big", signed=True)
        except OverflowError:
            return pair in self._odd
        at = bisect_left(range(len(blob) // WIDTH), wanted, key=lambda n: blob[n * WIDTH : (n + 1) * WIDTH]) * WIDTH
        return bool(blob[at : at + WIDTH] == wanted)

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        for issuer, blob in self._packed.items():
            for at in range(0, len(blob), WIDTH):
                yield issuer, int.from_bytes(blob[at : at + WIDTH], "big", signed=True)
        yield from self._odd

    def __len__(self) -> int:
        return sum(len(blob) // WIDTH for blob in self._packed.values()) + len(self._odd)


def pack(serials: Iterable[int]) -> tuple[bytes, list[int]]:
    """The serial numbers in order, each once, and the ones that are too long."""
    fit, rest = [], []
    for serial in serials:
        try:
            fit.append(serial.to_bytes(WIDTH, "big", signed=True))
        except OverflowError:
            rest.append(serial)
    fit.sort()
    return b"".join(each for each, _ in groupby(fit)), rest


def merge(blobs: Iterable[bytes]) -> bytes:
    """Several packed lists as one."""
    found = [blob for blob in blobs if blob]
    if len(found) < 2:
        return b"".join(found)
    every = sorted(blob[at : at + WIDTH] for blob in found for at in range(0, len(blob), WIDTH))
    return b"".join(each for each, _ in groupby(every))
