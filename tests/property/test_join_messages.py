"""The exchange of joining: what is written is read back, and nothing but a whole message is read."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intermediate_server.join import messages
from intermediate_server.join.messages import Answer, MessageError, Request, encode, parse_answer, parse_request
from intermediate_server.types import Role

PEM = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"


def texts(least: int, most: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(codec="utf-8").filter(str.isprintable), min_size=least, max_size=most)


moments = st.datetimes(timezones=st.just(UTC), allow_imaginary=False).map(lambda at: at.replace(microsecond=0))
requests: st.SearchStrategy[Request] = st.one_of(
    st.builds(
        messages.Join,
        st.binary(min_size=6, max_size=6),
        st.binary(min_size=20, max_size=20),
        st.binary(min_size=1, max_size=600),
        texts(0, 255),
        texts(0, 64),
    ),
    st.builds(messages.Renew, st.binary(min_size=1, max_size=600)),
    st.just(messages.Leave()),
)
answers: st.SearchStrategy[Answer] = st.one_of(
    st.builds(
        messages.Issued,
        st.just(PEM),
        st.just(PEM * 2),
        st.lists(texts(1, 300), min_size=1, max_size=4).map(tuple),
        texts(1, 255),
        texts(1, 64),
        st.sampled_from(Role),
        st.lists(texts(1, 200), max_size=8).map(tuple),
        moments,
        moments,
    ),
    st.builds(messages.Pending, st.floats(0, messages.MAX_RETRY_AFTER, exclude_min=True)),
    st.builds(messages.Refused, st.from_regex(r"[a-z][a-z0-9-]{0,31}", fullmatch=True), texts(1, 500), st.booleans()),
    st.just(messages.Left()),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(requests)
def test_requests_round_trip(request: Request) -> None:
    assert parse_request(encode(request)) == request


@given(answers)
def test_answers_round_trip(answer: Answer) -> None:
    assert parse_answer(encode(answer)) == answer


@given(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for parse in (parse_request, parse_answer):
        with pytest.raises(MessageError):
            parse(data)


@given(requests, st.data())
def test_a_request_with_one_value_replaced_is_refused_or_means_what_it_says(
    request: Request, data: st.DataObject
) -> None:
    body = json.loads(encode(request))
    key = data.draw(st.sampled_from(sorted(body)))
    body[key] = data.draw(values)
    try:
        found = parse_request(json.dumps(body).encode())
    except MessageError:
        return
    assert json.loads(encode(found))[key] == body[key]


@given(requests | answers, st.data())
def test_a_key_more_less_or_twice_is_an_error(message: Any, data: st.DataObject) -> None:
    parse = parse_request if isinstance(message, messages.Join | messages.Renew | messages.Leave) else parse_answer
    body = json.loads(encode(message))
    key = data.draw(st.sampled_from(sorted(body)))
    less = {name: value for name, value in body.items() if name != key}
    with pytest.raises(MessageError, match=r"lacks|has no"):
        parse(json.dumps(less).encode())
    with pytest.raises(MessageError, match="unknown key"):
        parse(json.dumps(body | {"extra": 1}).encode())
    twice = json.dumps(body)[:-1] + "," + json.dumps({key: body[key]})[1:]
    with pytest.raises(MessageError, match="twice"):
        parse(twice.encode())


def issued(**changes: Any) -> dict[str, Any]:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    message = messages.Issued(PEM, PEM, ("relay:4433",), "ztna-server", "office", Role.AGENT, ("web",), at, at)
    body: dict[str, Any] = json.loads(encode(message))
    return body | changes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("v", True),
        ("v", 2),
        ("v", "1"),
        ("type", "join"),
        ("chain", "MAA="),
        ("chain", PEM.replace("CERTIFICATE", "PRIVATE KEY")),
        ("chain", PEM.replace("\n", "\r\n")),
        ("servers", []),
        ("servers", ["relay"] * 9),
        ("servers", ["relay\n"]),
        ("servers", "relay"),
        ("server_name", ""),
        ("name", "x" * 65),
        ("name", "\u202eoffice"),
        ("role", "server"),
        ("role", ["agent"]),
        ("services", [["web"]]),
        ("services", ["web"] * 257),
        ("renew_after", "2026-02-30T00:00:00Z"),
        ("renew_after", "2026-01-01T00:00:00+00:00"),
        ("renew_after", "2026-01-01T00:00:00.5Z"),
        ("server_time", 1_700_000_000),
    ],
)
def test_an_answer_with_a_wrong_value_is_refused(key: str, value: object) -> None:
    parse_answer(json.dumps(issued()).encode())
    with pytest.raises(MessageError, match=f'"?{key}"?'):
        parse_answer(json.dumps(issued(**{key: value})).encode())


@pytest.mark.parametrize("wait", [0, -1, 3601, 1e999, float("nan"), True, "10", None, 10**400])
def test_a_wait_is_a_number_within_an_hour(wait: object) -> None:
    with pytest.raises(MessageError):
        parse_answer(json.dumps({"v": 1, "type": "pending", "retry_after": wait}).encode())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"[" * messages.MAX_BYTES, "nested|not JSON"),
        (b'{"a":' * 3000, "nested|not JSON"),
        (b"1" * 5000, "not JSON|not a JSON object"),
        (b"[]", "not a JSON object"),
        (b'{"v":1}', '"type"'),
        (b'{"v":1,"type":"left"}', '"type"'),
        (b'{"v":NaN}', "NaN"),
        (b'{"v":1,"type":"leave"}{}', "not JSON"),
        (b'{"v":1,"type":"leave"}' + b" " * messages.MAX_BYTES, "bytes; at most 16384"),
    ],
)
def test_what_is_no_request_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(MessageError, match=reason):
        parse_request(data)


def test_base64_has_one_spelling() -> None:
    for csr in ("MAB=", "MAA", "MAA==", "MA A=", "MAA=\n", "", "M\u00e4A="):
        with pytest.raises(MessageError, match="csr that is not base64"):
            parse_request(json.dumps({"v": 1, "type": "renew", "csr": csr}).encode())


def test_what_is_too_long_is_not_written() -> None:
    with pytest.raises(MessageError, match="csr that is not base64 of 1 to 8192 bytes"):
        encode(messages.Renew(bytes(9000)))
    at = datetime(2026, 1, 1, tzinfo=UTC)
    services = tuple(f"{number:0200}" for number in range(100))
    with pytest.raises(MessageError, match="at most 16384"):
        encode(messages.Issued(PEM, PEM, ("relay",), "ztna-server", "office", Role.AGENT, services, at, at))


def test_neither_a_secret_nor_a_value_is_in_a_text() -> None:
    secret = bytes(range(20))
    join = messages.Join(bytes(6), secret, b"csr", "office", "1")
    assert "secret" not in repr(join)
    body = json.loads(encode(join))
    with pytest.raises(MessageError) as caught:
        parse_request(json.dumps(body | {"secret": body["secret"][:-4]}).encode())
    assert body["secret"][:8] not in str(caught.value)
