"""Profile properties: what is written is read, and whatever else a file holds ends in one clear error."""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.profiles import authority, draft

from intermediate_server.client.profile import Draft, Profile, _fields, parse
from intermediate_server.client.profile_text import ProfileError, render
from intermediate_server.types import Role

printable = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(str.isprintable)
tokens = st.none() | st.binary(min_size=6, max_size=6)
seconds = st.integers(-(10**10), 10**10).map(
    lambda offset: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=offset)
)


@functools.cache
def one() -> tuple[Draft, Profile, bytes]:
    begun = draft()
    profile = Profile.of(begun, authority().issue_for(begun))
    return begun, profile, render(*_fields(profile))


def error_of(data: bytes) -> str:
    with pytest.raises(ProfileError) as caught:
        parse(data)
    return str(caught.value)


@given(
    name=printable,
    services=st.lists(printable, max_size=4),
    role=st.sampled_from(Role),
    token=tokens,
    renew_after=seconds,
    servers=st.lists(st.sampled_from(["relay.example", "192.0.2.1:1", "[2001:db8::1]"]), min_size=1, max_size=3),
)
def test_what_is_written_is_read(
    name: str, services: list[str], role: Role, token: bytes | None, renew_after: datetime, servers: list[str]
) -> None:
    _, made, _ = one()
    profile = Profile(
        made.key_pem,
        made.certificate_pem,
        made.ca_pem,
        tuple(servers),
        "ztna-server",
        name,
        role,
        tuple(services),
        renew_after,
        token,
    )
    assert parse(render(*_fields(profile))) == profile


@given(st.integers(0, 5000))
def test_a_file_that_was_cut_is_refused(cut: int) -> None:
    data = one()[2]
    part = data[: cut % (len(data) - 1)]
    assert part.rstrip() != data.rstrip()
    assert error_of(part)


@given(st.integers(0, 5000), st.binary(min_size=1, max_size=3))
def test_a_changed_file_is_read_or_refused_and_no_more(place: int, change: bytes) -> None:
    _, _, data = one()
    place %= len(data)
    try:
        found = parse(data[:place] + change + data[place + len(change) :])
    except ProfileError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(found, Profile)


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode(errors="replace")))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    error_of(data)
    error_of(b"version = 1\n" + data)
