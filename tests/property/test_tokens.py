"""Join tokens: one spelling each, a damaged one is an error with the right cause, and the secret stays in the token."""

from __future__ import annotations

import base64
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from intermediate_server.config.values import read_server
from intermediate_server.join.tokens import PREFIX, Token, TokenError, secret_hash
from intermediate_server.types import Role

labels = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=4).map(".".join).filter(lambda name: not name.replace(".", "").isdigit())
hosts = st.one_of(names, st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(lambda item: f"[{item}]"))
servers = st.one_of(hosts, st.tuples(hosts, st.integers(1, 65_535)).map(lambda pair: f"{pair[0]}:{pair[1]}"))


@st.composite
def tokens(draw: st.DrawFn) -> Token:
    return Token(
        role=draw(st.sampled_from(Role)),
        pin=draw(st.binary(min_size=32, max_size=32)),
        id=draw(st.binary(min_size=6, max_size=6)),
        secret=draw(st.binary(min_size=20, max_size=20)),
        servers=tuple(dict.fromkeys(map(read_server, draw(st.lists(servers, min_size=1, max_size=8))))),
        server_name=draw(st.one_of(st.just("ztna-server"), names)),
    )


PLAIN = Token(Role.AGENT, bytes(range(32)), bytes(range(6)), bytes(range(20, 40)), ("relay.example.com",))


@given(tokens())
def test_a_token_is_read_as_it_was_written(token: Token) -> None:
    assert Token.parse(str(token)) == token


@given(tokens(), st.data())
def test_a_cut_token_is_said_to_be_cut(token: Token, data: st.DataObject) -> None:
    text = str(token)
    length = data.draw(st.integers(1, len(text) - 1))
    with pytest.raises(TokenError, match="cut short"):
        Token.parse(text[:length])


@given(tokens(), st.data())
def test_one_wrong_character_is_noticed(token: Token, data: st.DataObject) -> None:
    text = str(token)
    at = data.draw(st.integers(len(PREFIX), len(text) - 1))
    other = data.draw(st.characters(codec="ascii", categories=["L", "N", "P"]).filter(lambda item: item != text[at]))
    with pytest.raises(TokenError, match=r"not copied well|cut short"):
        Token.parse(text[:at] + other + text[at + 1 :])


@given(tokens(), st.text(alphabet="ABC01-_= \n", min_size=1, max_size=8))
def test_more_than_a_token_is_noticed_unless_it_is_space(token: Token, more: str) -> None:
    if not more.split():
        assert Token.parse(f"{more}{token}{more}") == token
        return
    with pytest.raises(TokenError):
        Token.parse(f"{token}{more}")


@given(st.one_of(st.text(max_size=300), st.text(max_size=300).map(lambda text: PREFIX + text)))
@example("")
@example("ztj1_")
@example("ztj1_é")
def test_any_text_is_a_token_or_an_error(text: str) -> None:
    with pytest.raises(TokenError):
        Token.parse(text)


@given(st.binary(max_size=200))
@example(bytes((1,)) + bytes(58) + b"\1\3a b\0")
@example(bytes((3,)) + bytes(58) + b"\1\1a\0")
@example(bytes((1,)) + bytes(58) + b"\0\0")
def test_content_that_is_no_tokens_has_a_good_check_sum_in_vain(content: bytes) -> None:
    body = content + zlib.crc32(content).to_bytes(4, "big")
    text = PREFIX + base64.urlsafe_b64encode(body).decode().rstrip("=")
    try:
        token = Token.parse(text)
    except TokenError:
        return
    assert str(token) == text


@given(tokens())
def test_the_secret_is_in_no_repr_and_no_error(token: Token) -> None:
    assert repr(token.secret) not in repr(token)
    assert token.secret.hex() not in repr(token)
    text = str(token)
    for bad in (text[:-1], text + "A", text.replace(PREFIX, "ztj2_"), text.replace(PREFIX, "")):
        with pytest.raises(TokenError) as error:
            Token.parse(bad)
        assert text[70:90] not in str(error.value)


def test_the_text_of_a_token_is_the_same_for_ever() -> None:
    assert str(PLAIN) == (
        "ztj1_AQABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fAAECAwQFFBUWFxgZGhscHR4fICEiIyQlJicBEXJlbGF5LmV4YW1wbGUuY29t"
        "AKlBgP0"
    )
    assert secret_hash(PLAIN.secret).hex() == "f7574141cb2eb085242e82b0ed8527dec72391af88bf45d6eb4f511e9cd56e9c"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "begins with ztj1_"),
        ("laptop", "begins with ztj1_"),
        ("ztj2_AAAA", "newer version"),
        ("ztj", "cut short"),
        ("ztj1_", "cut short"),
        ("ztj1_A", "cut short"),
        ("ztj1_" + "A" * 9000, "too long"),
    ],
)
def test_what_is_no_token_says_what_to_do(text: str, error: str) -> None:
    with pytest.raises(TokenError, match=error):
        Token.parse(text)


def test_a_new_token_takes_servers_in_any_form() -> None:
    token = Token.new(
        Role.CONNECTOR,
        pin=bytes(32),
        servers=("Relay.Example.COM:4433", "relay.example.com.", "[2001:DB8::1]:443", "2001:db8::1"),
    )
    assert token.servers == ("relay.example.com", "[2001:db8::1]:443", "2001:db8::1")
    assert Token.parse(str(token)) == token
    assert Token.new(Role.AGENT, pin=bytes(32), servers=("a",)).secret != token.secret
    assert len(str(PLAIN)) <= 120


@pytest.mark.parametrize(
    "server", ["", "a b", "a:0", "a:65536", "a:x", "-a", "a..b", "1.2.3", "2001:db8::1:x", "ü:1:2"]
)
def test_what_is_no_server_is_refused(server: str) -> None:
    with pytest.raises(TokenError, match="cannot name this server"):
        Token.new(Role.AGENT, pin=bytes(32), servers=(server,))


@pytest.mark.parametrize("count", [0, 9])
def test_a_token_names_one_to_eight_servers(count: int) -> None:
    with pytest.raises(TokenError, match="1 to 8"):
        Token.new(Role.AGENT, pin=bytes(32), servers=tuple(f"relay-{number}" for number in range(count)))
