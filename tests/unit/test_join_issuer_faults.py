"""The issuer is cut off at each of its steps, its store fails, and identities end by themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.unit.issuing import NOW, Relays, Token, cause, der_of, joined, leaf_of

from intermediate_server.errors import CertificateError
from intermediate_server.join.messages import Issued, Refused
from intermediate_server.pki import keys


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relays]:
    made = Relays(tmp_path / "state")
    yield made
    made.store.close()


class Killed(BaseException):
    """The process ends here."""


def killed(*_: object, **__: object) -> None:
    raise Killed


@pytest.mark.parametrize("step", ["reserve", "sign", "record"])
def test_a_join_that_was_cut_off_at_any_step_is_finished_by_the_same_key(
    relay: Relays, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    token, key = relay.token(), keys.new_key()
    owner: object = relay.authority if step == "sign" else relay.issuer._joins
    with monkeypatch.context() as patch:
        real: Callable[..., object] = getattr(owner, step)

        def then_killed(*args: object, **options: object) -> None:
            real(*args, **options)
            raise Killed

        patch.setattr(type(owner), step, lambda _, *args, **options: then_killed(*args, **options))
        with pytest.raises(Killed):
            relay.join(token, key)
    relay.store.close()
    again = Relays(relay.directory, tokens=relay.tokens)
    assert cause(again.join(token, keys.new_key(), host="thief")) == "used"
    answer = again.join(token, key)
    assert isinstance(answer, Issued)
    (row,) = again.store.entries()
    assert row.fingerprint == leaf_of(answer).fingerprint(keys.SHA256).hex()
    assert again.joins.token(token.id) is not None and again.joins.token(token.id).used == 1  # type: ignore[union-attr]
    again.store.close()


def test_a_damaged_database_is_a_refusal_that_may_pass_and_a_word_to_the_operator(relay: Relays) -> None:
    token, key = relay.token(), keys.new_key()
    relay.store.close()
    good = (relay.directory / "identity.db").read_bytes()
    for name in ("identity.db", "identity.db-wal", "identity.db-shm"):
        (relay.directory / name).unlink(missing_ok=True)
    (relay.directory / "identity.db").write_bytes(b"no database" * 1000)
    answer = relay.join(token, key)
    assert isinstance(answer, Refused)
    assert (answer.cause, answer.again) == ("unavailable", True)
    assert relay.last is not None
    assert "damaged" in relay.last.trouble and not relay.last.guess
    assert str(relay.directory) not in answer.sentence
    with pytest.raises(CertificateError):
        relay.issuer.sweep(frozenset(), relay.now, may_end=True)
    (relay.directory / "identity.db").unlink()
    (relay.directory / "identity.db").write_bytes(good)
    assert isinstance(relay.join(token, key), Issued | Refused)


def test_a_clock_that_is_wrong_beyond_doubt_issues_nothing(relay: Relays) -> None:
    token = relay.token()
    relay.now = NOW.replace(year=1970)
    answer = relay.join(token, keys.new_key())
    assert cause(answer) in ("unavailable", "expired")
    relay.now = NOW
    assert relay.last is not None and "clock" in relay.last.trouble


def test_an_answer_beyond_the_limit_is_refused_before_anything_is_recorded(relay: Relays) -> None:
    token = relay.token(*(f"{number:0190}" for number in range(60)))
    answer = relay.join(token, keys.new_key())
    assert cause(answer) == "unavailable"
    assert relay.last is not None and "at most 16384" in relay.last.trouble
    assert relay.store.entries() == []


def test_no_answer_and_no_outcome_shows_a_secret(relay: Relays) -> None:
    token = relay.token()
    relay.join(Token(token.id, b"s" * 20), keys.new_key())
    assert relay.last is not None
    assert "s" * 8 not in repr(relay.last) + relay.last.data.decode()
    assert json.loads(relay.last.data)["cause"] == "unknown"


# Ephemeral identities


def test_an_ephemeral_identity_ends_when_it_was_not_connected_for_long_enough(relay: Relays) -> None:
    key = keys.new_key()
    first = joined(relay, key, ephemeral=timedelta(hours=1))
    fingerprint = leaf_of(first).fingerprint(keys.SHA256).hex()
    other = relay.join(relay.token(), keys.new_key(), host="stays")
    relay.later(minutes=59)
    assert relay.issuer.sweep(frozenset({fingerprint}), relay.now, may_end=True)[0] == ()
    relay.later(minutes=59)
    ended, states, ephemeral = relay.issuer.sweep(frozenset(), relay.now, may_end=True)
    assert (ended, ephemeral) == ((), True)
    assert states == {"live": 2, "expired": 0, "ended": 0}
    relay.later(minutes=1)
    assert relay.issuer.sweep(frozenset(), relay.now, may_end=False)[0] == ()
    ended, states, _ = relay.issuer.sweep(frozenset(), relay.now, may_end=True)
    assert {item.name for item in ended} == {"office"}
    assert states == {"live": 1, "expired": 0, "ended": 1}
    assert cause(relay.renew(der_of(first), key)) == "revoked"
    assert isinstance(other, Issued)
    relay.later(days=8)
    assert relay.issuer.sweep(frozenset(), relay.now, may_end=True)[1] == {"live": 0, "expired": 1, "ended": 1}
