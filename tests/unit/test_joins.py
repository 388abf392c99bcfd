"""Tokens and joins: a token is good for as many keys as it says, and a join that was cut off is taken up again."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from intermediate_server.errors import CertificateError
from intermediate_server.join.tokens import Token, secret_hash
from intermediate_server.pki import Authority, joins, keys
from intermediate_server.pki.database import StoreError
from intermediate_server.pki.joins import Joins, Refusal, Reservation, Waiting
from intermediate_server.pki.store import Issued, Store
from intermediate_server.pki.terms import TokenRow, terms
from intermediate_server.types import Role

NOW = keys.utc_now()
HOME = IPv4Address("198.51.100.7")
WEEK = timedelta(days=7)
KEYS = [keys.new_key() for _ in range(4)]


@dataclass
class Rig:
    """A state directory with tokens, and devices that join by them."""

    directory: Path

    def __post_init__(self) -> None:
        self.authority = Authority(self.directory, Store(self.directory))
        self.authority.init(now=NOW)
        self.joins = Joins(self.authority)

    def token(self, expires: timedelta = timedelta(hours=1), **options: Any) -> Token:
        given: dict[str, Any] = {"services": ["web"], "lifetime": WEEK, **options}
        wanted = terms(given.pop("role", Role.AGENT), **given)
        token = Token.new(wanted.role, pin=bytes(32), servers=("relay.example.com",))
        self.joins.create(token.id, secret_hash(token.secret), wanted, pin=token.pin, expires=expires, now=NOW)
        return token

    def reserve(
        self,
        token: Token,
        which: int = 0,
        host: str = "laptop",
        source: IPv4Address | IPv6Address = HOME,
        after: timedelta = timedelta(0),
    ) -> Reservation | Issued | Waiting | Refusal:
        key = keys.key_hash(KEYS[which].public_key())
        return self.joins.reserve(token.id, secret_hash(token.secret), key, host, source, NOW + after)

    def join(self, token: Token, which: int = 0, host: str = "laptop", **more: Any) -> Issued | Waiting | Refusal:
        """All that a relay does for a join."""
        answer = self.reserve(token, which, host, **more)
        if not isinstance(answer, Reservation):
            return answer
        return self.joins.record(answer, [self.sign(answer, which)], now=NOW)

    def sign(self, reservation: Reservation, which: int = 0) -> x509.Certificate:
        given = reservation.terms
        return self.authority.sign(
            KEYS[which].public_key(),
            name=reservation.name,
            role=given.role,
            services=given.services,
            lifetime=given.lifetime,
            dns=given.dns,
            uris=given.uris,
            serial=reservation.serial,
            now=NOW,
        )

    def row(self, token: Token) -> TokenRow:
        row = self.joins.token(token.id)
        assert row is not None
        return row


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "state")


def refused(answer: object, cause: str) -> str:
    assert isinstance(answer, Refusal)
    assert answer.cause == cause
    return answer.sentence


def issued(answer: object) -> Issued:
    assert isinstance(answer, Issued), answer
    return answer


def test_a_token_makes_one_device_what_it_says(rig: Rig) -> None:
    token = rig.token(services=["Web", "db"], dns=["laptop.example.com"], uris=["spiffe://example.org/laptop"])
    made = issued(rig.join(token, host="ann's laptop.local"))
    assert (made.name, made.role, made.services) == ("ann-s-laptop.local", Role.AGENT, ("web", "db"))
    [certificate] = keys.parse_certificates(made.chain, "")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == [
        "agent.web.ztna",
        "agent.db.ztna",
        "laptop.example.com",
        "spiffe://example.org/laptop",
    ]
    assert made.not_after == NOW + WEEK
    assert made.token == token.id
    assert rig.row(token).state(NOW) == "used"
    again = refused(rig.join(token, 1), "used")
    assert f'used by "{made.name}" at {NOW:%Y-%m-%d %H:%M} UTC' in again


def test_the_same_key_gets_the_same_certificate(rig: Rig) -> None:
    token = rig.token()
    made = issued(rig.join(token))
    assert rig.join(token, after=timedelta(hours=2)) == made, "also when the token has expired meanwhile"
    refused(rig.join(token, after=timedelta(days=8)), "used")
    rig.authority.revoke(made.name)
    refused(rig.join(token), "used")
    assert rig.row(token).used == 1


def test_an_operator_renews_who_has_joined(rig: Rig) -> None:
    made = issued(rig.join(rig.token()))
    renewed = rig.authority.renew(made.name, days=1)
    assert (renewed.identity, renewed.key) == (made.identity, made.key)


def test_identities_are_counted_by_their_state(rig: Rig) -> None:
    issued(rig.join(rig.token(), 0, "a"))
    issued(rig.join(rig.token(lifetime=timedelta(minutes=1)), 1, "b"))
    rig.authority.revoke(issued(rig.join(rig.token(), 2, "c")).name)
    rig.authority.issue_server("relay.example.com")
    with rig.authority.store_of() as store:
        assert store.states(NOW) == {"live": 2, "expired": 0, "ended": 1}
        assert store.states(NOW + timedelta(minutes=2)) == {"live": 1, "expired": 1, "ended": 1}


def test_who_does_not_know_the_secret_learns_nothing(rig: Rig) -> None:
    token = rig.token(networks=["192.0.2.0/24"])
    other = Token.new(Role.AGENT, pin=bytes(32), servers=("relay.example.com",))
    wrong = replace(token, secret=other.secret)
    assert rig.reserve(other) == rig.reserve(wrong) == joins.UNKNOWN
    assert rig.row(token).used == 0


def test_a_token_ends(rig: Rig) -> None:
    token = rig.token()
    assert "expired at" in refused(rig.reserve(token, after=timedelta(hours=1)), "expired")
    assert isinstance(rig.reserve(token, after=timedelta(minutes=59)), Reservation)
    revoked = rig.token()
    assert rig.joins.revoke_token(revoked.id).state(NOW) == "revoked"
    refused(rig.reserve(revoked), "revoked")
    with pytest.raises(CertificateError, match="there is no token 000000000000"):
        rig.joins.revoke_token(bytes(6))


@pytest.mark.parametrize(
    ("source", "good"),
    [
        ("192.0.2.1", True),
        ("::ffff:192.0.2.1", True),
        ("192.0.3.1", False),
        ("2001:db8::1", True),
        ("2001:db9::1", False),
    ],
)
def test_a_token_is_for_its_networks(rig: Rig, source: str, good: bool) -> None:
    token = rig.token(networks=["192.0.2.0/24", "2001:db8::/32"])
    answer = rig.reserve(token, source=ip_address(source))
    assert isinstance(answer, Reservation) is good
    if not good:
        assert source in refused(answer, "source")
        assert rig.row(token).used == 0


def test_a_taken_name_is_refused_or_taken_over(rig: Rig) -> None:
    first = issued(rig.join(rig.token(), 0, "office"))
    assert "'office' is taken" in refused(rig.join(rig.token(), 1, "office"), "name")
    token = rig.token(replaces=True, name="office")
    second = issued(rig.join(token, 1, "anything"))
    assert second.identity != first.identity
    [old] = [entry for entry in rig.authority.entries() if entry.identity == first.identity]
    assert (old.cause, old.revoked_at) == ("replaced", NOW)
    assert [item.serial_number for item in x509.load_pem_x509_crl(rig.authority.crl_path.read_bytes())] == [
        int(first.serial, 16)
    ]
    with pytest.raises(CertificateError, match="was revoked"):
        rig.authority.renewed(first, [keys.parse_certificates(first.chain, "")[0]])


def test_one_host_may_be_agent_and_connector(rig: Rig) -> None:
    agent = issued(rig.join(rig.token(), 0, "office"))
    connector = issued(rig.join(rig.token(role=Role.CONNECTOR), 1, "office"))
    issued(rig.join(rig.token(replaces=True, name="office"), 2))
    ended = {entry.identity for entry in rig.authority.entries() if entry.ended_at}
    assert ended == {agent.identity}, "only who has the role is replaced"
    with pytest.raises(CertificateError, match="both agent and connector"):
        rig.authority.renew("office")
    assert {entry.role for entry in rig.authority.revoke("office")} == {Role.AGENT, Role.CONNECTOR}
    assert all(entry.ended_at for entry in rig.authority.entries())
    assert connector.identity not in ended


def test_a_name_is_free_once_its_certificate_has_expired(rig: Rig) -> None:
    issued(rig.join(rig.token(lifetime=timedelta(minutes=1)), 0, "office"))
    token = rig.token()
    refused(rig.reserve(token, 1, "office"), "name")
    assert isinstance(rig.reserve(token, 1, "office", after=timedelta(minutes=2)), Reservation)


def test_a_reserved_name_is_taken(rig: Rig) -> None:
    token = rig.token()
    first = rig.reserve(token, 0, "office")
    refused(rig.reserve(rig.token(), 1, "office"), "name")
    refused(rig.reserve(rig.token(replaces=True, prefix="off"), 2, "ice"), "name")
    assert rig.reserve(token, 0, "another") == first, "a repetition keeps its name"


def test_several_uses_are_counted(rig: Rig) -> None:
    token = rig.token(uses=3, prefix="ci-")
    for which in range(3):
        assert issued(rig.join(token, which, f"host{which}")).name == f"ci-host{which}"
    refused(rig.join(token, 3, "host3"), "used")
    assert rig.row(token).used == 3


@pytest.mark.parametrize("host", ["", "...", "ü", "-", "a" * 300, "x\0y", "../../etc", "\u202e"])
def test_the_name_of_a_host_can_do_no_harm(rig: Rig, host: str) -> None:
    made = issued(rig.join(rig.token(), host=host))
    assert 0 < len(made.name) <= 64
    assert made.name.isascii()
    assert "/" not in made.name


def test_a_join_waits_for_an_operator(rig: Rig) -> None:
    token = rig.token(approve=True)
    waiting = rig.join(token, 0, "office")
    assert isinstance(waiting, Waiting)
    assert rig.join(token, 0, "office") == waiting
    refused(rig.join(token, 1, "other"), "used")
    [item] = rig.joins.pending(NOW)
    assert (item.join, item.name, item.host, item.source) == (waiting.join, "office", "office", str(HOME))
    rig.joins.approve(item.join, now=NOW)
    assert rig.joins.pending(NOW) == []
    assert issued(rig.join(token, 0, "office")).name == "office"
    with pytest.raises(CertificateError, match="token pending"):
        rig.joins.deny(item.join, now=NOW)


def test_a_denied_join_leaves_the_token_to_others(rig: Rig) -> None:
    token = rig.token(approve=True)
    waiting = rig.join(token, 0, "thief")
    assert isinstance(waiting, Waiting)
    rig.joins.deny(waiting.join, now=NOW)
    refused(rig.join(token, 0, "thief"), "denied")
    assert isinstance(rig.join(token, 1, "office"), Waiting)
    refused(rig.join(token, 1, "office", after=timedelta(hours=1)), "expired")


def test_more_than_10_000_live_tokens_are_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joins, "MAX_LIVE", 3)
    tokens = [rig.token() for _ in range(3)]
    with pytest.raises(CertificateError, match="3 tokens may be used"):
        rig.token()
    rig.joins.revoke_token(tokens[0].id)
    rig.join(rig.token())
    with pytest.raises(CertificateError, match="token list"):
        rig.token()
        rig.token()


@pytest.mark.parametrize("change", ["services = '{'", "networks = '[\"x\"]'", "expires = 1 << 60"])
def test_a_token_that_makes_no_sense_is_a_damaged_database(rig: Rig, change: str) -> None:
    token = rig.token()
    with rig.authority.store_of() as store, store.transaction() as db:
        db.execute(f"UPDATE tokens SET {change}")
    for act in (rig.joins.tokens, lambda: rig.reserve(token), lambda: rig.joins.revoke_token(token.id)):
        with pytest.raises(StoreError, match="is damaged"):
            act()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"services": []}, "at least one service"),
        ({"services": ["a b"]}, "cannot be a service"),
        ({"uses": 0}, "--uses: 0 is out of range"),
        ({"uses": 1001}, "1 to 1000"),
        ({"name": "a", "uses": 2}, "use --name-prefix"),
        ({"name": "a", "prefix": "b"}, "give one"),
        ({"name": "a/b"}, "cannot be a name"),
        ({"replaces": True}, "say whom, with --name or --name-prefix"),
        ({"lifetime": timedelta(seconds=59)}, "--lifetime: 59s is out of range, 1m to 398d"),
        ({"lifetime": timedelta(days=399)}, "--lifetime"),
        ({"expires": timedelta(days=31)}, "--expires: 31d is out of range, 1m to 30d"),
        ({"expires": timedelta(seconds=0)}, "--expires"),
        ({"ephemeral": timedelta(seconds=1)}, "--ephemeral"),
        ({"networks": ["192.0.2.1/24"]}, "--from: '192.0.2.1/24' is not a network"),
        ({"networks": ["x"]}, "is not a network"),
        ({"dns": ["agent.db.ztna"]}, "would grant a service"),
        ({"dns": ["connector.db.ZTNA."]}, "would grant a service"),
        ({"dns": ["a b"]}, "is not a DNS name"),
        ({"uris": ["https://example.org"]}, "is not a SPIFFE id"),
    ],
    ids=str,
)
def test_terms_that_no_token_can_have(rig: Rig, options: dict[str, Any], error: str) -> None:
    with pytest.raises(CertificateError, match=error):
        rig.token(**options)
    assert rig.joins.tokens() == []


def test_names_for_rules_do_without_services(rig: Rig) -> None:
    made = issued(rig.join(rig.token(services=[], dns=["laptop.example.com"])))
    assert (made.services, made.dns) == ((), ("laptop.example.com",))


def child(rig: Rig, token: Token, statements: int) -> bool:
    """Join in a process that is killed before its statement of this number; whether it got to the end."""
    pid = os.fork()
    if pid == 0:
        left = statements

        def count(_: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            own = Rig(rig.directory)
            with own.authority.store_of() as store, store.reading() as db:
                db.set_trace_callback(count)
            own.join(token, 0, "office")
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_relay_killed_at_any_statement_leaves_one_identity_one_use_and_one_certificate(rig: Rig) -> None:
    issued(rig.join(rig.token(), 1, "office"))
    for statements in range(1000):
        token = rig.token(replaces=True, name="office")
        whole = child(rig, token, statements)
        if rig.row(token).used:
            refused(rig.join(token, 2, "office"), "used")
        made = issued(rig.join(token, 0, "office"))
        assert rig.row(token).used == 1
        live = [entry for entry in rig.authority.entries() if entry.is_live(NOW) and entry.ended_at is None]
        assert live == [made]
        revoked = {item.serial_number for item in x509.load_pem_x509_crl(rig.authority.crl_path.read_bytes())}
        assert int(made.serial, 16) not in revoked
        assert {int(entry.serial, 16) for entry in rig.authority.entries() if entry.revoked_at} <= revoked
        if whole:
            assert statements > 15
            return
    pytest.fail("it never got to the end")
