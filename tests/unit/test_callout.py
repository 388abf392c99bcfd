"""What the callout asks, what it understands, how long it remembers, and which settings it takes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from tests.unit.settings import load

from intermediate_server.config import Settings
from intermediate_server.config.callout import CalloutSettings, read_callout
from intermediate_server.errors import ConfigError
from intermediate_server.policy import Allow, Deny, Limits, make_policy
from intermediate_server.policy.callout import CalloutPolicy
from intermediate_server.policy.callout.cache import Cache
from intermediate_server.policy.callout.messages import BadAnswer, decision, question
from intermediate_server.types import Address, ConnectionId, Identity, Peer, Registration, Role

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
IDENTITY = Identity(
    fingerprint="ab" * 32,
    key_hash=b"\x01" * 32,
    subject="CN=ann",
    dns_names=("agent.web.ztna",),
    uris=("spiffe://example.org/ann",),
    not_before=NOW,
    not_after=NOW + timedelta(days=1),
)
PEER = Peer(ConnectionId(7), Address(ip_address("192.0.2.1"), 5000), IDENTITY)
REGISTRATION = Registration(PEER, Role.AGENT, "web")


def test_question_holds_every_fact() -> None:
    assert json.loads(question(REGISTRATION)) == {
        "version": 1,
        "role": "agent",
        "service": "web",
        "address": "192.0.2.1",
        "identity": {
            "fingerprint": "ab" * 32,
            "key_hash": "01" * 32,
            "subject": "CN=ann",
            "dns_names": ["agent.web.ztna"],
            "uris": ["spiffe://example.org/ann"],
            "not_before": "2026-05-01T12:00:00+00:00",
            "not_after": "2026-05-02T12:00:00+00:00",
        },
    }
    anonymous = replace(REGISTRATION, peer=replace(PEER, identity=None))
    assert json.loads(question(anonymous))["identity"] is None


def test_questions_differ_where_facts_do_and_only_there() -> None:
    facts: dict[str, Any] = {
        "fingerprint": "cd" * 32,
        "key_hash": b"\x02" * 32,
        "subject": "CN=bob",
        "dns_names": ("agent.web.ztna", "agent.db.ztna"),
        "uris": (),
        "not_before": NOW - timedelta(1),
        "not_after": NOW,
    }
    others = [
        replace(REGISTRATION, role=Role.CONNECTOR),
        replace(REGISTRATION, service="Web"),
        replace(REGISTRATION, peer=replace(PEER, identity=None)),
        replace(REGISTRATION, peer=replace(PEER, address=Address(ip_address("192.0.2.2"), 5000))),
        *(
            replace(REGISTRATION, peer=replace(PEER, identity=replace(IDENTITY, **{name: value})))
            for name, value in facts.items()
        ),
    ]
    assert len({question(each) for each in [REGISTRATION, *others]}) == 1 + len(others)
    moved = replace(PEER, conn=ConnectionId(8), address=Address(PEER.address.host, 1))
    assert question(replace(REGISTRATION, peer=moved)) == question(REGISTRATION)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"allow": True}, Allow()),
        ({"allow": True, "rule": None, "limits": None, "valid_until": None}, Allow()),
        (
            {"allow": True, "rule": "staff", "limits": {"bytes_per_second": 5, "connections": 1}},
            Allow("staff", Limits(bytes_per_second=5, connections=1)),
        ),
        ({"allow": True, "valid_until": "2026-05-01T14:00:00+02:00"}, Allow(valid_until=NOW)),
        ({"allow": True, "direct": None}, Allow()),
        ({"allow": True, "direct": False}, Allow(direct=False)),
        ({"allow": False}, Deny("the callout denies it")),
        ({"allow": False, "reason": "on leave", "rule": "hr"}, Deny("on leave", "hr")),
    ],
)
def test_answers(answer: object, expected: Allow | Deny) -> None:
    assert decision(json.dumps(answer).encode()) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"yes",
        b"\xff",
        b"true",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"allow": 1}',
        b'{"allow": "true"}',
        b'{"allow": null}',
        b'{"allow": false, "allow": true}',
        b'{"allow": true, "limit": {"connections": 1}}',
        b'{"allow": true, "reason": "why"}',
        b'{"allow": false, "limits": {}}',
        b'{"allow": true, "limits": []}',
        b'{"allow": true, "limits": {"connections": 0}}',
        b'{"allow": true, "limits": {"connections": -1}}',
        b'{"allow": true, "limits": {"connections": true}}',
        b'{"allow": true, "limits": {"connections": 1.0}}',
        b'{"allow": true, "limits": {"connections": NaN}}',
        b'{"allow": true, "limits": {"connections": 9223372036854775808}}',
        b'{"allow": true, "limits": {"connection": 1}}',
        b'{"allow": true, "limits": {"connections": ' + b"9" * 10_000 + b"}}",
        b'{"allow": true, "valid_until": 1777777777}',
        b'{"allow": true, "direct": 0}',
        b'{"allow": false, "direct": false}',
        b'{"allow": true, "valid_until": "2026-05-01T12:00:00"}',
        b'{"allow": true, "valid_until": "tomorrow"}',
        b'{"allow": true, "valid_until": "0001-01-01T00:00:00+23:59"}',
        b'{"allow": true, "rule": 7}',
        b'{"allow": true, "rule": "' + b"x" * 201 + b'"}',
        b'{"allow": false, "reason": "line\\nline"}',
        b'{"allow": true} {"allow": true}',
    ],
)
def test_what_is_not_understood_in_full_is_no_answer(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        decision(body)


def test_cache_is_bounded_and_keeps_what_is_used() -> None:
    cache = Cache(size=2, lifetime=timedelta(seconds=10))
    cache.put(b"a", Allow("a"), NOW, asked=1)
    cache.put(b"b", Allow("b"), NOW, asked=2)
    assert cache.get(b"a", NOW) == Allow("a")
    cache.put(b"c", Deny("c"), NOW, asked=3)
    assert len(cache) == 2
    assert [cache.get(key, NOW) for key in (b"a", b"b", b"c")] == [Allow("a"), None, Deny("c")]


def test_cache_forgets_in_time() -> None:
    cache = Cache(size=9, lifetime=timedelta(seconds=10))
    soon = Allow("soon", valid_until=NOW + timedelta(seconds=3))
    cache.put(b"soon", soon, NOW, asked=1)
    cache.put(b"late", Allow(), NOW, asked=1)
    assert cache.get(b"soon", NOW + timedelta(seconds=2.9)) == soon
    assert cache.get(b"soon", NOW + timedelta(seconds=3)) is None, "the server asks again at this very moment"
    assert cache.get(b"late", NOW + timedelta(seconds=9.9)) is not None
    assert cache.get(b"late", NOW + timedelta(seconds=10)) is None
    assert len(cache) == 0
    cache.put(b"late", Allow(), NOW, asked=1)
    assert cache.get(b"late", NOW - timedelta(hours=1)) is None, "the clock was set back"


def test_a_late_answer_replaces_none_to_a_later_question() -> None:
    cache = Cache(size=9, lifetime=timedelta(seconds=10))
    cache.put(b"a", Deny("left"), NOW, asked=2)
    cache.put(b"a", Allow(), NOW, asked=1)
    assert cache.get(b"a", NOW) == Deny("left")
    cache.put(b"a", Allow(), NOW, asked=3)
    assert cache.get(b"a", NOW) == Allow()


def test_no_cache() -> None:
    cache = Cache(size=9, lifetime=timedelta(0))
    cache.put(b"a", Allow(), NOW, asked=1)
    assert len(cache) == 0


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({}, "url.* is missing"),
        ({"url": "http://access.example.com/"}, "must be https"),
        ({"url": "http://127.0.0.1.example.com/"}, "must be https"),
        ({"url": "ftp://x/"}, "must begin with https"),
        ({"url": "https://:443/"}, "and a host"),
        ({"url": "https://user:hunter2@x/"}, "no user, password"),
        ({"url": "https://x/?key=hunter2"}, "query"),
        ({"url": "https://x:99999/"}, "malformed"),
        ({"url": "https://x/\r\nHost: y"}, "not a URL"),
        ({"url": "https://x/", "deadline": "2s"}, "deadline"),
        ({"url": "https://x/", "concurrency": 65}, "concurrency"),
        ({"url": "https://x/", "max-answer": 1}, "max-answer"),
        ({"url": "https://x/", "token": "hunter2"}, "unknown key 'token'; known are url, token-file"),
        ({"url": "https://x/", "token-env": "hunter-2"}, "environment variable"),
        ({"url": "https://x/", "token-env": "A", "token-file": "/x"}, "both set"),
        ({"url": "https://x/", "max-answer": 1, "max_answer": 1}, "given twice"),
        ("https://x/", "as a table"),
    ],
)
def test_bad_settings(table: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as raised:
        read_callout(table)
    assert "hunter" not in str(raised.value)


def test_settings_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("s3cret\n")
    file.write_text(f'[callout]\nurl = "https://x/"\ntoken-file = "{token}"\ndeadline = "500ms"\ncache_size = 5\n')
    settings = load({"config": str(file)}, env={}).callout
    assert settings == CalloutSettings(url="https://x/", token_file=token, deadline=0.5, cache_size=5)
    assert str(settings) == f'{{ url = "https://x/", token-file = "{token}", deadline = "500ms", cache-size = 5 }}'
    assert isinstance(make_policy(Settings(callout=settings)), CalloutPolicy)
    file.write_text('[callout]\nurl = "https://x/"\n[[rules]]\nname = "x"\n')
    with pytest.raises(ConfigError, match="rules and callout are both set"):
        load({"config": str(file)}, env={})


@pytest.mark.parametrize(
    ("text", "mode", "problem"),
    [
        (None, 0o600, "cannot be read"),
        ("hunter2", 0o604, "chmod 600"),
        ("", 0o600, "one token"),
        ("hun ter2", 0o600, "one token"),
        ("hunter2\r\nX: y", 0o600, "one token"),
        ("huntér2", 0o600, "one token"),
        ("s" * 9000, 0o600, "one token"),
    ],
    ids=range(7),
)
def test_bad_token_files(tmp_path: Path, text: str | None, mode: int, problem: str) -> None:
    file = tmp_path / "token"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(ConfigError, match=problem) as raised:
        CalloutPolicy(CalloutSettings(url="https://x/", token_file=file))
    assert not text or text not in str(raised.value)


def test_bad_token_variables_and_ca(tmp_path: Path) -> None:
    settings = CalloutSettings(url="https://x/", token_env="TOKEN")
    with pytest.raises(ConfigError, match="TOKEN of token-env is not set"):
        CalloutPolicy(settings, env={})
    with pytest.raises(ConfigError, match="one token"):
        CalloutPolicy(settings, env={"TOKEN": "a b"})
    CalloutPolicy(settings, env={"TOKEN": "ab"})
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match="ca-cert"):
        CalloutPolicy(CalloutSettings(url="https://x/", ca_cert=tmp_path / "ca.pem"))
