"""The other side learns nothing but usable addresses of a list, and the observed address of the party."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from intermediate_server.signaling.candidates import MOST, OBSERVED_PRIORITY, edit
from intermediate_server.types import Address
from intermediate_server.wire.signaling import (
    Candidate,
    CandidateKind,
    decode_candidates,
    encode_candidates,
)

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
PRIVATE = tuple(
    map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")),
)
NEVER = tuple(
    map(ip_network, ("224.0.0.0/4", "240.0.0.0/4", "0.0.0.0/8", "169.254.0.0/16", "ff00::/8", "fe80::/10", "::/128"))
)

networks = st.sampled_from(
    (*LOOPBACK, *PRIVATE, *NEVER, ip_network("203.0.113.0/28"), ip_network("2001:db8::/124"), ip_network("0.0.0.0/32"))
)


def within(network: IPv4Network | IPv6Network) -> st.SearchStrategy[Address]:
    # The edges of a network, its inside, and what lies just beyond.
    first, last = int(network.network_address), int(network.broadcast_address)
    top = 2**network.max_prefixlen - 1
    numbers = st.sampled_from([max(0, first - 1), first, last, min(top, last + 1)]) | st.integers(first, last)
    kind = type(network.network_address)
    hosts = numbers.map(kind).filter(lambda host: getattr(host, "ipv4_mapped", None) is None)
    return st.builds(Address, hosts, st.sampled_from([0, 1, 4_433, 50_000, 65_535]))


addresses = networks.flatmap(within)
candidates = st.lists(
    st.builds(
        Candidate,
        st.sampled_from(CandidateKind),
        addresses,
        st.integers(0, 5) | st.sampled_from([OBSERVED_PRIORITY, 2**32 - 1]),
        st.sampled_from(["", "f", "é" * 32, "é" * 33, "x" * 65]),
        st.none() | addresses,
    ),
    max_size=40,
).map(tuple)


def inside(address: Address, ranges: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    return any(address.host in network for network in ranges if network.version == address.host.version)


@settings(max_examples=100)
@given(candidates, addresses, addresses, st.frozensets(addresses, max_size=3), st.booleans())
def test_an_edited_list_is_a_part_of_what_was_told_and_the_observed_address(
    given_list: tuple[Candidate, ...], party: Address, other: Address, relay: frozenset[Address], always: bool
) -> None:
    encoded = encode_candidates(given_list)
    edited = edit(given_list, encoded, party=party, other=other, relay=relay, always_private=always)
    told = decode_candidates(edited.encoded)
    assert len(told) <= MOST
    assert (edited.encoded == encoded) == (told == given_list) == (not edited.changed)
    assert len({candidate.address for candidate in told}) == len(told)
    assert edited.families == {candidate.address.host.version for candidate in told}

    loopback = inside(party, LOOPBACK) and inside(other, LOOPBACK)
    private = always or party.host == other.host or inside(party, PRIVATE) or inside(other, PRIVATE)
    for candidate in told:
        assert candidate.address.port != 0
        assert candidate.kind is not CandidateKind.RELAY
        assert not inside(candidate.address, NEVER)
        assert candidate.address not in relay
        assert loopback or not inside(candidate.address, LOOPBACK)
        assert private or not inside(candidate.address, PRIVATE)
        assert len(candidate.foundation.encode()) <= 64

    added = told[len(told) - edited.counts.added :]
    for candidate in added:
        assert (candidate.address, candidate.kind, candidate.related) == (party, CandidateKind.SERVER_REFLEXIVE, None)
        assert not inside(party, LOOPBACK)
    # In the order in which they were told, each from one of its own.
    source = iter(given_list)
    for candidate in told[: len(told) - len(added)]:
        assert any(matches(candidate, one, party) for one in source), candidate

    counts = edited.counts
    assert sum(counts.passed.values()) + counts.added == len(told)
    assert sum(counts.passed.values()) + sum(counts.removed.values()) == len(given_list)


def matches(told: Candidate, original: Candidate, party: Address) -> bool:
    host = party.host if int(original.address.host) == 0 else original.address.host
    name = {0: "host", 1: "srflx", 2: "prflx"}.get(told.kind, "")
    foundation = original.foundation if len(original.foundation.encode()) <= 64 else f"{name}_{host}"
    return told == Candidate(
        original.kind, Address(host, original.address.port), original.priority, foundation, original.related
    )


public = st.builds(
    Address, st.integers(1, 14).map(lambda last: ip_address(f"203.0.113.{last}")), st.integers(1, 65_535)
)


@given(st.lists(public, min_size=1, max_size=MOST, unique=True))
def test_a_list_of_public_addresses_with_the_observed_one_keeps_its_bytes(listed: list[Address]) -> None:
    given_list = tuple(Candidate(CandidateKind.HOST, address, 1, "f") for address in listed)
    encoded = encode_candidates(given_list)
    edited = edit(given_list, encoded, party=listed[-1], other=Address(ip_address("198.51.100.1"), 1))
    assert edited.encoded is encoded
    assert not edited.changed


@given(st.lists(public, min_size=40, max_size=64, unique=True), st.data())
def test_the_highest_priorities_pass_and_the_observed_address_with_them(
    listed: list[Address], data: st.DataObject
) -> None:
    priorities = data.draw(st.lists(st.integers(0, 9), min_size=len(listed), max_size=len(listed)))
    given_list = tuple(
        Candidate(CandidateKind.HOST, address, priority, "f")
        for address, priority in zip(listed, priorities, strict=True)
    )
    party = Address(ip_address("198.51.100.9"), 9)
    edited = edit(given_list, b"", party=party, other=Address(ip_address("198.51.100.1"), 1))
    *told, last = decode_candidates(edited.encoded)
    assert last.address == party
    assert len(told) == MOST - 1
    assert sorted((one.priority for one in told), reverse=True) == sorted(priorities, reverse=True)[: MOST - 1]
