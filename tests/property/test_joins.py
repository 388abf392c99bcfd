"""Tokens and joins in any order, with a relay that is killed between its steps: each token gives what it says."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import suppress
from datetime import datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from intermediate_server.errors import CertificateError
from intermediate_server.join.tokens import Token, secret_hash
from intermediate_server.pki import Authority, keys
from intermediate_server.pki.joins import Joins, Refusal, Reservation
from intermediate_server.pki.store import Store
from intermediate_server.pki.terms import terms
from intermediate_server.types import Role

START = keys.utc_now()
KEYS = [keys.new_key() for _ in range(3)]
NAMES = ["office", "laptop"]
ADDRESS = IPv4Address("192.0.2.1")

some_key = st.integers(0, len(KEYS) - 1)
which = st.integers(0, 9)


class Relay(RuleBasedStateMachine):
    """A relay, and what a reader of docs/identities.md expects of it."""

    @initialize()
    def begin(self) -> None:
        self.scratch = tempfile.TemporaryDirectory()
        self.now: datetime = START
        self.tokens: list[Token] = []
        self.held: list[tuple[Reservation, int]] = []
        """Reservations whose certificate was not recorded yet, with the number of their key."""
        self.start()
        self.authority.init(now=self.now)

    @rule()
    def start(self) -> None:
        """A relay that was killed starts again."""
        self.authority = Authority(Path(self.scratch.name), Store(self.scratch.name))
        self.joins = Joins(self.authority)

    @rule(
        role=st.sampled_from(Role),
        uses=st.integers(1, 2),
        approve=st.booleans(),
        replaced=st.sampled_from([None, *NAMES]),
    )
    def create(self, role: Role, uses: int, approve: bool, replaced: str | None) -> None:
        wanted = terms(
            role,
            ["web"],
            lifetime=timedelta(hours=3),
            uses=1 if replaced else uses,
            approve=approve,
            name=replaced,
            replaces=replaced is not None,
        )
        token = Token.new(role, pin=bytes(32), servers=("relay",))
        self.joins.create(
            token.id, secret_hash(token.secret), wanted, pin=token.pin, expires=timedelta(hours=1), now=self.now
        )
        self.tokens.append(token)

    @rule(which=which, key=some_key, host=st.sampled_from(NAMES), whole=st.booleans())
    def join(self, which: int, key: int, host: str, whole: bool) -> None:
        if not self.tokens:
            return
        token = self.tokens[which % len(self.tokens)]
        before = self.used(token)
        answer = self.joins.reserve(
            token.id, secret_hash(token.secret), keys.key_hash(KEYS[key].public_key()), host, ADDRESS, self.now
        )
        if isinstance(answer, Refusal):
            assert self.used(token) == before, "a refusal takes no use"
        if isinstance(answer, Reservation):
            self.held.append((answer, key))
            if whole:
                self.record(len(self.held) - 1)

    @rule(which=which)
    def record(self, which: int) -> None:
        if not self.held:
            return
        reservation, key = self.held[which % len(self.held)]
        signed = self.authority.sign(
            KEYS[key].public_key(),
            name=reservation.name,
            role=reservation.terms.role,
            services=["web"],
            lifetime=reservation.terms.lifetime,
            serial=reservation.serial,
            now=self.now,
        )
        try:
            made = self.joins.record(reservation, [signed], now=self.now)
        except CertificateError as error:
            assert "taken meanwhile" in str(error) or "is gone" in str(error)
            return
        assert made.name == reservation.name
        assert made.key == reservation.key

    @rule(which=which, good=st.booleans())
    def decide(self, which: int, good: bool) -> None:
        waiting = self.joins.pending(self.now)
        if waiting:
            act = self.joins.approve if good else self.joins.deny
            act(waiting[which % len(waiting)].join, now=self.now)

    @rule(which=which)
    def revoke_token(self, which: int) -> None:
        if self.tokens:
            self.joins.revoke_token(self.tokens[which % len(self.tokens)].id, now=self.now)

    @rule(name=st.sampled_from(NAMES))
    def revoke(self, name: str) -> None:
        with suppress(CertificateError):  # nobody has the name yet
            self.authority.revoke(name, now=self.now)

    @rule(minutes=st.sampled_from([1, 61, 200]))
    def wait(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    def used(self, token: Token) -> int:
        row = self.joins.token(token.id)
        assert row is not None
        return row.used

    @invariant()
    def nothing_is_issued_twice(self) -> None:
        if not hasattr(self, "joins"):
            return
        entries = self.authority.entries()
        by_token = Counter(entry.token for entry in {item.identity: item for item in entries}.values())
        for row in self.joins.tokens():
            assert by_token[row.id] <= row.used <= row.terms.uses
        pairs = Counter((entry.token, entry.key) for entry in entries)
        assert set(pairs.values()) <= {1}, "one certificate for a key and a token"
        here = Counter((item.name, item.role) for item in entries if item.is_live(self.now) and item.ended_at is None)
        assert set(here.values()) <= {1}, "a name is one holder's in each role"

    @invariant()
    def what_is_revoked_is_on_the_list(self) -> None:
        if not hasattr(self, "joins"):
            return
        listed = {item.serial_number for item in x509.load_pem_x509_crl(self.authority.crl_path.read_bytes())}
        for entry in self.authority.entries():
            if entry.revoked_at is not None and entry.not_after > self.now:
                assert int(entry.serial, 16) in listed
            if entry.ended_at is not None:
                assert entry.revoked_at is not None or entry.not_after <= self.now

    def teardown(self) -> None:
        if hasattr(self, "scratch"):
            self.scratch.cleanup()


TestJoins = Relay.TestCase
TestJoins.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
