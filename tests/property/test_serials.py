"""Packed serial numbers are the set that they stand for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from intermediate_server.pki.serials import Serials, merge, pack

issuers = st.sampled_from([b"one", b"two", b""])
serials = (
    st.integers(-3, 3) | st.integers(-(1 << 200), 1 << 200) | st.sampled_from([1 << 159, (1 << 167) - 1, 1 << 167])
)
pairs = st.tuples(issuers, serials)


@given(st.lists(pairs, max_size=30), st.lists(pairs, max_size=10))
def test_a_packed_set_is_the_set(held: list[tuple[bytes, int]], asked: list[tuple[bytes, int]]) -> None:
    packed = Serials.of(held)
    assert set(packed) == set(held)
    assert len(packed) == len(set(held))
    assert packed.issuers == {issuer for issuer, _ in held}
    for pair in [*held, *asked]:
        assert (pair in packed) is (pair in set(held))


@given(st.lists(st.lists(st.integers(0, 50), max_size=20), max_size=4))
def test_lists_are_merged_in_order_and_each_number_once(lists: list[list[int]]) -> None:
    assert merge(pack(each)[0] for each in lists) == pack(number for each in lists for number in each)[0]
