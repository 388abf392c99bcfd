"""Candidates: each rule of removal, replacement and addition by an example."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.signaling import address, host

from intermediate_server.signaling.candidates import Edited, Removal, edit
from intermediate_server.types import Address
from intermediate_server.wire.signaling import Candidate, CandidateKind, decode_candidates, encode_candidates

HERE, THERE = address("198.51.100.1", 1_001), address("198.51.100.2", 1_002)
OBSERVED = Candidate(CandidateKind.SERVER_REFLEXIVE, HERE, 1_694_498_815, "srflx_198.51.100.1")


def edited(
    *candidates: Candidate,
    party: Address = HERE,
    other: Address = THERE,
    relay: frozenset[Address] = frozenset(),
    always_private: bool = False,
) -> Edited:
    return edit(
        candidates, encode_candidates(candidates), party=party, other=other, relay=relay, always_private=always_private
    )


def told(
    *candidates: Candidate, party: Address = HERE, other: Address = THERE, always_private: bool = False
) -> list[str]:
    result = edited(*candidates, party=party, other=other, always_private=always_private)
    return [str(candidate.address) for candidate in decode_candidates(result.encoded)]


def removal(candidate: Candidate, relay: frozenset[Address] = frozenset()) -> Removal:
    result = edited(candidate, relay=relay)
    assert decode_candidates(result.encoded) == (OBSERVED,)
    ((_, why),) = result.counts.removed
    return why


def test_a_list_that_stays_as_it_was_keeps_its_bytes() -> None:
    mapped = encode_candidates((OBSERVED,)).replace(
        bytes(4) + HERE.host.packed, b"\1\0\0\0" + bytes(10) + b"\xff\xff" + HERE.host.packed
    )
    result = edit(decode_candidates(mapped), mapped, party=HERE, other=THERE)
    assert result.encoded == mapped
    assert not result.changed
    assert result.counts.passed == {CandidateKind.SERVER_REFLEXIVE: 1}


@pytest.mark.parametrize(
    ("text", "port", "why"),
    [
        ("203.0.113.1", 0, Removal.PORT),
        ("224.0.0.1", 1, Removal.MULTICAST),
        ("239.255.255.255", 1, Removal.MULTICAST),
        ("ff02::1", 1, Removal.MULTICAST),
        ("169.254.1.1", 1, Removal.LINK_LOCAL),
        ("fe80::1", 1, Removal.LINK_LOCAL),
        ("febf:ffff::1", 1, Removal.LINK_LOCAL),
        ("240.0.0.1", 1, Removal.RESERVED),
        ("255.255.255.255", 1, Removal.RESERVED),
        ("0.0.0.1", 1, Removal.RESERVED),
        ("127.0.0.1", 1, Removal.LOOPBACK),
        ("127.255.0.1", 1, Removal.LOOPBACK),
        ("::1", 1, Removal.LOOPBACK),
        ("10.0.0.1", 1, Removal.PRIVATE),
        ("172.16.0.1", 1, Removal.PRIVATE),
        ("172.31.255.255", 1, Removal.PRIVATE),
        ("192.168.1.1", 1, Removal.PRIVATE),
        ("100.64.0.1", 1, Removal.PRIVATE),
        ("100.127.255.255", 1, Removal.PRIVATE),
        ("fc00::1", 1, Removal.PRIVATE),
        ("fdff::1", 1, Removal.PRIVATE),
    ],
)
def test_an_address_that_the_other_side_cannot_use_is_removed(text: str, port: int, why: Removal) -> None:
    assert removal(host(text, port)) is why


@pytest.mark.parametrize(
    "text",
    [
        "172.15.0.1", "172.32.0.1", "100.63.0.1", "100.128.0.1", "192.167.0.1", "11.0.0.1", "126.0.0.1",
        "223.255.255.255", "192.0.2.1", "198.18.0.1", "2001:db8::1", "fec0::1", "fe00::1",
    ],
)  # fmt: skip
def test_an_address_beside_the_private_ones_passes(text: str) -> None:
    assert told(host(text, 7)) == [str(address(text, 7)), "198.51.100.1:1001"]


def test_a_relayed_candidate_is_removed() -> None:
    assert removal(replace(host("203.0.113.1"), kind=CandidateKind.RELAY)) is Removal.RELAY_KIND


def test_an_address_of_the_relay_is_removed() -> None:
    here = address("203.0.113.1", 4_433)
    assert removal(host("203.0.113.1", 4_433), frozenset({here})) is Removal.RELAY
    beside = edited(host("203.0.113.1", 4_434), relay=frozenset({here}))
    assert not beside.counts.removed, "another port of the relay's host may be a connector"


@pytest.mark.parametrize(
    ("party", "other", "passes"),
    [
        ("198.51.100.1", "198.51.100.2", False),
        ("198.51.100.1", "198.51.100.1", True),  # behind one NAT
        ("192.168.7.7", "198.51.100.2", True),  # in the relay's own network
        ("198.51.100.1", "10.0.0.7", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "198.51.100.2", False),
    ],
)
def test_private_addresses_pass_where_they_can_be_of_use(party: str, other: str, passes: bool) -> None:
    result = told(host("10.1.2.3", 9), party=address(party, 1), other=address(other, 2))
    assert ("10.1.2.3:9" in result) == passes
    always = told(host("10.1.2.3", 9), party=address(party, 1), other=address(other, 2), always_private=True)
    assert "10.1.2.3:9" in always


def test_loopback_passes_on_one_host_only() -> None:
    loopback = address("127.0.0.1", 1)
    assert told(host("127.0.0.1", 9), party=loopback, other=address("::1", 2)) == ["127.0.0.1:9"]
    assert told(host("127.0.0.1", 9), party=loopback, other=THERE) == []


@pytest.mark.parametrize("unspecified", ["0.0.0.0", "::"])
def test_an_unspecified_address_becomes_the_observed_one(unspecified: str) -> None:
    result = edited(host(unspecified, 7_000))
    first, second = decode_candidates(result.encoded)
    assert first == host("198.51.100.1", 7_000, foundation=f"host_{unspecified}")
    assert second == OBSERVED
    assert result.counts.replaced == {CandidateKind.HOST: 1}
    assert result.counts.added == 1


def test_an_unspecified_address_with_the_observed_port_needs_no_second() -> None:
    assert told(host("0.0.0.0", 1_001)) == ["198.51.100.1:1001"]


def test_a_host_seen_at_loopback_has_no_unspecified_candidate() -> None:
    assert told(host("0.0.0.0", 7), party=address("127.0.0.1", 7)) == []


@pytest.mark.parametrize(
    ("foundation", "stays"), [("x" * 64, True), ("x" * 65, False), ("é" * 32, True), ("é" * 33, False)]
)
def test_a_long_foundation_is_replaced(foundation: str, stays: bool) -> None:
    result = decode_candidates(edited(host("203.0.113.1", foundation=foundation)).encoded)
    assert result[0].foundation == (foundation if stays else "host_203.0.113.1")


def test_of_equal_addresses_the_first_passes() -> None:
    first, second = host("203.0.113.1", foundation="first"), host("203.0.113.1", priority=2**32 - 1)
    result = edited(first, second)
    assert decode_candidates(result.encoded) == (first, OBSERVED)
    assert result.counts.removed == {(CandidateKind.HOST, Removal.REPEATED): 1}


def test_the_32_of_the_highest_priority_pass_in_their_order() -> None:
    many = [host(f"203.0.113.{n}", priority=n % 50) for n in range(1, 65)]
    passed = decode_candidates(edited(*many, OBSERVED).encoded)
    assert len(passed) == 32
    assert min(one.priority for one in passed) >= max(one.priority for one in many if one not in passed)
    assert list(passed) == [one for one in (*many, OBSERVED) if one in passed]


def test_the_observed_address_is_told_beside_31_others() -> None:
    many = [host(f"203.0.113.{n}", priority=2**32 - 1) for n in range(1, 33)]
    result = edited(*many)
    assert decode_candidates(result.encoded) == (*many[:31], OBSERVED)
    assert result.counts.removed == {(CandidateKind.HOST, Removal.BEYOND): 1}


def test_an_ipv6_party_is_told_by_its_family() -> None:
    result = edited(party=address("2001:db8::1", 9))
    (only,) = decode_candidates(result.encoded)
    assert (only.foundation, str(only.address)) == ("srflx_2001:db8::1", "[2001:db8::1]:9")
    assert result.families == {6}


def test_counts_become_json_by_kind_and_reason() -> None:
    result = edited(
        host("0.0.0.0", 7), host("10.0.0.1"), host("10.0.0.2"), replace(host("1.2.3.4"), kind=CandidateKind.RELAY)
    )
    assert result.counts.as_dict() == {
        "given": {"host": 3, "relay": 1},
        "passed": {"host": 1},
        "replaced": {"host": 1},
        "removed": {"host": {"private": 2}, "relay": {"relay_kind": 1}},
        "added": 1,
    }
