"""The issuer gives what the token says to whoever has its secret, once, and renews what it has issued."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.issuing import NOW, Relays, Token, cause, der_of, joined, leaf_of, signing_request

from intermediate_server.join import messages
from intermediate_server.join.csr import read
from intermediate_server.join.messages import Issued, Left, Pending, Refused, encode
from intermediate_server.pki import identity_of, keys
from intermediate_server.pki.signer import Wanted
from intermediate_server.types import Role


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relays]:
    made = Relays(tmp_path / "state")
    yield made
    made.store.close()


def test_the_token_decides_every_name(relay: Relays) -> None:
    key = keys.new_key()
    token = relay.token("web", "db", dns=("ann.example.com",), uris=("spiffe://example.org/office",))
    request = signing_request(key, "connector.secret.ztna", "agent.*.ztna")
    answer = relay.ask(encode(messages.Join(token.id, token.secret, request, "office", "1")))
    assert isinstance(answer, Issued)
    found = identity_of(der_of(answer))
    assert found.dns_names == ("connector.web.ztna", "connector.db.ztna", "ann.example.com")
    assert found.uris == ("spiffe://example.org/office",)
    assert found.subject == "CN=office"
    assert (answer.name, answer.role, answer.services) == ("office", Role.CONNECTOR, ("web", "db"))
    leaf = leaf_of(answer)
    assert leaf.not_valid_after_utc == NOW + timedelta(days=7)
    assert answer.renew_after == NOW + timedelta(days=3.5)
    assert answer.server_time == NOW
    assert answer.ca.encode() == relay.authority.bundle()
    assert keys.public_bytes(leaf.public_key()) == keys.public_bytes(key.public_key())
    assert keys.is_signed_by(leaf, x509.load_pem_x509_certificate(answer.ca.encode()))


def test_the_same_key_gets_the_same_certificate_again_and_another_key_none(relay: Relays) -> None:
    token, key = relay.token(), keys.new_key()
    first = relay.join(token, key)
    relay.later(minutes=5)
    again = relay.join(token, key)
    assert isinstance(first, Issued) and isinstance(again, Issued)
    assert again.chain == first.chain
    assert again.renew_after == first.renew_after
    assert relay.last is not None and relay.last.result == "repeated"
    refused = relay.join(token, keys.new_key(), host="second")
    assert isinstance(refused, Refused)
    assert refused.cause == "used"
    assert '"office"' in refused.sentence
    assert "12:00" in refused.sentence
    assert len(relay.store.entries()) == 1


def test_a_lost_answer_is_repeated_even_after_the_token_has_expired(relay: Relays) -> None:
    token, key = relay.token(), keys.new_key()
    first = relay.join(token, key)
    relay.later(hours=2)
    again = relay.join(token, key)
    assert isinstance(first, Issued) and isinstance(again, Issued)
    assert again.chain == first.chain
    assert cause(relay.join(relay_token_expired(relay), keys.new_key())) == "expired"


def relay_token_expired(relay: Relays) -> Token:
    token = relay.token()
    relay.later(minutes=61)
    return token


def test_an_unknown_id_and_a_wrong_secret_get_the_same_answer(relay: Relays) -> None:
    token, key = relay.token(), keys.new_key()
    request = signing_request(key)
    for token_id, secret in ((token.id, bytes(20)), (b"\xff" * 6, token.secret)):
        answer = relay.ask(encode(messages.Join(token_id, secret, request, "office", "1")))
        assert answer == relay.ask(encode(messages.Join(bytes(6), bytes(20), request, "x", "1")))
        assert cause(answer) == "unknown"
        assert relay.last is not None and relay.last.guess
    # None of it has used the token.
    assert isinstance(relay.join(token, key), Issued)


def test_what_is_wrong_with_a_token_is_told_to_its_holder_only(relay: Relays) -> None:
    key = keys.new_key()
    elsewhere = relay.token(networks=("198.51.100.0/24", "2001:db8::/32"))
    assert cause(relay.join(elsewhere, key)) == "source"
    assert isinstance(relay.join(elsewhere, key, source="198.51.100.9"), Issued)
    withdrawn = relay.token()
    relay.joins.revoke_token(withdrawn.id, now=relay.now)
    assert cause(relay.join(withdrawn, key)) == "revoked"
    assert cause(relay.join(relay.token(), keys.new_key())) == "name"
    guessed = Token(withdrawn.id, bytes(20))
    assert cause(relay.join(guessed, key)) == "unknown"


def test_a_join_that_needs_approval_waits_for_it(relay: Relays) -> None:
    token, key = relay.token(approve=True), keys.new_key()
    assert relay.join(token, key) == Pending(10.0)
    assert relay.join(token, key) == Pending(10.0)
    (waiting,) = relay.joins.pending(relay.now)
    assert (waiting.name, waiting.source) == ("office", "192.0.2.7")
    relay.joins.approve(waiting.join, now=relay.now)
    assert isinstance(relay.join(token, key), Issued)
    denied, other = relay.token(approve=True), keys.new_key()
    relay.join(denied, other, host="lab")
    relay.joins.deny(relay.joins.pending(relay.now)[0].join, now=relay.now)
    assert cause(relay.join(denied, other, host="lab")) == "denied"


def test_a_weak_key_or_a_bad_signature_uses_no_token(relay: Relays) -> None:
    token, key = relay.token(), keys.new_key()
    damaged = bytearray(signing_request(key))
    damaged[-1] ^= 1
    answer = relay.ask(encode(messages.Join(token.id, token.secret, bytes(damaged), "office", "1")))
    assert cause(answer) == "csr"
    assert relay.last is not None and relay.last.token == token.id.hex()
    assert isinstance(relay.join(token, key), Issued)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff" * 100, b" " * 20_000, b'{"v":1,"type":"left"}'])
def test_what_is_no_request_is_refused(relay: Relays, data: bytes) -> None:
    assert cause(relay.ask(data)) == "malformed"
    assert relay.last is not None and relay.last.guess


# Renewal


def test_a_renewal_keeps_identity_and_names(relay: Relays) -> None:
    key = keys.new_key()
    first = joined(relay, key, dns=("ann.example.com",))
    relay.later(days=4)
    second = relay.renew(der_of(first), key)
    assert isinstance(second, Issued)
    old, new = identity_of(der_of(first)), identity_of(der_of(second))
    assert (new.key_hash, new.dns_names, new.subject) == (old.key_hash, old.dns_names, old.subject)
    assert new.not_after == relay.now + timedelta(days=7)
    assert second.renew_after == relay.now + timedelta(days=3.5)
    assert relay.last is not None and (relay.last.request, relay.last.result) == ("renew", "issued")
    first_row, second_row = relay.store.entries()
    assert first_row.identity == second_row.identity


def test_another_key_is_taken_after_a_while(relay: Relays) -> None:
    key, other = keys.new_key(), keys.new_key()
    first = joined(relay, key)
    early = relay.renew(der_of(first), other)
    assert isinstance(early, Refused)
    assert (early.cause, early.again) == ("early", True)
    relay.later(seconds=61)
    assert isinstance(relay.renew(der_of(first), other), Issued)


def test_a_renewal_that_is_repeated_gives_the_same_certificate(relay: Relays) -> None:
    key = keys.new_key()
    first = joined(relay, key, lifetime=60)
    relay.later(seconds=30)
    second = relay.renew(der_of(first), key)
    relay.later(seconds=14)
    again = relay.renew(der_of(first), key)
    assert isinstance(second, Issued) and isinstance(again, Issued)
    assert again.chain == second.chain
    relay.later(seconds=2)
    third = relay.renew(der_of(second), key)
    assert isinstance(third, Issued)
    assert third.chain != second.chain


def test_an_old_certificate_renews_to_the_present_services(relay: Relays) -> None:
    key = keys.new_key()
    first = joined(relay, key)
    row = relay.store.newest(1)
    assert row is not None
    relay.later(days=1)
    relay.authority.renew("office", services=["mail"], now=relay.now)
    relay.later(days=1)
    second = relay.renew(der_of(first), key)
    assert isinstance(second, Issued)
    assert second.services == ("mail",)
    assert identity_of(der_of(second)).dns_names == ("connector.mail.ztna",)


def test_an_expired_certificate_renews_within_the_grace_and_not_beyond(relay: Relays) -> None:
    key = keys.new_key()
    first = joined(relay, key)
    relay.later(days=7 + 29)
    second = relay.renew(der_of(first), key)
    assert isinstance(second, Issued)
    assert relay.last is not None and relay.last.request == "late-renew"
    relay.later(days=7 + 30)
    refused = relay.renew(der_of(second), key)
    assert isinstance(refused, Refused)
    assert (refused.cause, refused.again) == ("past-grace", False)
    assert "new token" in refused.sentence


def test_without_a_grace_an_expired_certificate_is_refused_at_once(relay: Relays) -> None:
    key = keys.new_key()
    first = joined(relay, key)
    relay.issuer = relay.open(renew_grace=timedelta(0))
    relay.later(days=7)
    assert cause(relay.renew(der_of(first), key)) == "past-grace"


def test_a_revoked_certificate_renews_and_leaves_no_more(relay: Relays) -> None:
    key = keys.new_key()
    first = joined(relay, key)
    relay.authority.revoke("office", now=relay.now)
    assert cause(relay.renew(der_of(first), key)) == "revoked"
    # It has ended already, which is what a leave asks for.
    assert relay.leave(der_of(first)) == Left()


def test_a_certificate_on_a_list_renews_and_leaves_no_more(relay: Relays) -> None:
    key = keys.new_key()
    first = joined(relay, key)
    relay.issuer = relay.open(denied=lambda der: "on the deny list" if der == der_of(first) else None)
    assert cause(relay.renew(der_of(first), key)) == "revoked"
    assert cause(relay.leave(der_of(first))) == "revoked"


def test_a_certificate_that_is_none_of_ours_renews_nothing(relay: Relays, tmp_path: Path) -> None:
    key = keys.new_key()
    other = Relays(tmp_path / "other")
    foreign = der_of(joined(other, key))
    other.store.close()
    assert cause(relay.renew(foreign, key)) == "unknown-certificate"
    assert cause(relay.leave(foreign)) == "unknown-certificate"
    assert cause(relay.renew(b"no certificate", key)) == "unknown-certificate"
    assert cause(relay.renew(None, key)) == "no-certificate"
    assert cause(relay.leave(None)) == "no-certificate"
    relay.authority.issue_server("relay.example.com", now=relay.now)
    server = x509.load_pem_x509_certificate(relay.authority.certificate_file("relay.example.com").read_bytes())
    assert cause(relay.renew(server.public_bytes(Encoding.DER), key)) == "unknown-certificate"


def test_leaving_ends_the_identity_and_frees_the_name(relay: Relays) -> None:
    key = keys.new_key()
    first = joined(relay, key)
    assert relay.leave(der_of(first)) == Left()
    assert relay.last is not None
    assert [item.fingerprint for item in relay.last.ended] == [leaf_of(first).fingerprint(keys.SHA256).hex()]
    listed = x509.load_pem_x509_crl(relay.authority.crl_path.read_bytes())
    assert [item.serial_number for item in listed] == [leaf_of(first).serial_number]
    assert relay.leave(der_of(first)) == Left()
    assert cause(relay.renew(der_of(first), key)) == "revoked"
    assert isinstance(relay.join(relay.token(), keys.new_key()), Issued)


class Elsewhere:
    """A signer that answers by another CA."""

    def __init__(self) -> None:
        self.key = keys.new_key()
        self.ca = keys.sign_itself("elsewhere", self.key, not_before=NOW, not_after=NOW + timedelta(days=100))

    def sign(self, request: x509.CertificateSigningRequest, wanted: Wanted, *, now: datetime) -> list[x509.Certificate]:
        made = keys.sign(
            subject=keys.common_name(wanted.name),
            public_key=read(request.public_bytes(Encoding.DER))[1],
            authority=self.ca,
            authority_key=self.key,
            names=[x509.DNSName(name) for name in wanted.dns_names],
            usage=keys.CLIENT_AUTH,
            not_before=now,
            not_after=now + wanted.lifetime,
        )
        return [made]

    def stop(self) -> None:
        pass


def test_what_a_signer_has_issued_is_revoked_by_its_fingerprint(relay: Relays) -> None:
    relay.issuer = relay.open(signer=Elsewhere())
    key = keys.new_key()
    first = joined(relay, key)
    relay.later(days=1)
    second = relay.renew(der_of(first), key)
    relay.authority.revoke("office", now=relay.now)
    denied = (relay.directory / "denied.txt").read_text()
    for answer in (first, second):
        assert leaf_of(answer).fingerprint(keys.SHA256).hex() in denied
    assert cause(relay.renew(der_of(second), key)) == "revoked"
