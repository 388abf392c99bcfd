"""An issuer over a state directory of its own, and the requests of devices to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed448, ed25519

from intermediate_server.join import messages
from intermediate_server.join.issuer import Issuer, Outcome, Relay
from intermediate_server.join.messages import Answer, encode, parse_answer
from intermediate_server.join.tokens import secret_hash
from intermediate_server.pki import keys
from intermediate_server.pki.authority import Authority
from intermediate_server.pki.joins import Joins
from intermediate_server.pki.store import Store
from intermediate_server.pki.terms import terms
from intermediate_server.types import Role

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
OFFICE = ip_address("192.0.2.7")
SERVERS = ("relay.example.com",)


def signing_request(key: Any, *names: str, digest: hashes.SHA224 | hashes.SHA256 | None = None) -> bytes:
    """A signing request for a key, DER, with names that are wishes only."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(keys.common_name("wish"))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
    edwards = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    own = None if edwards else (digest or hashes.SHA256())
    return builder.sign(key, own).public_bytes(serialization.Encoding.DER)


def leaf_of(answer: Answer) -> x509.Certificate:
    """The certificate of an answer."""
    assert isinstance(answer, messages.Issued), answer
    return x509.load_pem_x509_certificates(answer.chain.encode())[0]


def der_of(answer: Answer) -> bytes:
    """The certificate of an answer, as a handshake shows it."""
    return leaf_of(answer).public_bytes(serialization.Encoding.DER)


@dataclass
class Token:
    """A token's id and secret."""

    id: bytes
    secret: bytes


@dataclass
class Relays:
    """One relay's issuer, whose clock a test moves."""

    directory: Path
    options: dict[str, Any] = field(default_factory=dict)
    now: datetime = NOW
    tokens: int = 0

    def __post_init__(self) -> None:
        self.store = Store(self.directory)
        self.authority = Authority(self.directory, self.store)
        self.authority.init(now=self.now)
        self.joins = Joins(self.authority)
        self.issuer = self.open(**self.options)
        self.last: Outcome | None = None

    def open(self, **options: Any) -> Issuer:
        """An issuer as a server makes one at its start."""
        relay = Relay(SERVERS, "ztna-server", self.authority.bundle())
        given: dict[str, Any] = {"renew_grace": timedelta(days=30), "relay": relay} | options
        return Issuer(store=self.store, authority=self.authority, **given)

    def token(self, *services: str, role: Role = Role.CONNECTOR, lifetime: float = 7 * 86_400, **options: Any) -> Token:
        """A new token, good for an hour."""
        self.tokens += 1
        made = Token(self.tokens.to_bytes(6, "big"), bytes([self.tokens]) * 20)
        given = terms(role, services or ("web",), lifetime=timedelta(seconds=lifetime), **options)
        hashed = secret_hash(made.secret)
        self.joins.create(made.id, hashed, given, pin=bytes(32), expires=timedelta(hours=1), now=self.now)
        return made

    def ask(self, data: bytes, certificate: bytes | None = None, source: str | None = None) -> Answer:
        """The answer to bytes of a request."""
        self.last = self.issuer.answer(data, certificate, ip_address(source) if source else OFFICE, self.now)
        return parse_answer(self.last.data)

    def join(self, token: Token, key: Any, *, host: str = "office", source: str | None = None) -> Answer:
        """The answer to a join with a token."""
        request = messages.Join(token.id, token.secret, signing_request(key), host, "1")
        return self.ask(encode(request), None, source)

    def renew(self, certificate: bytes | None, key: Any) -> Answer:
        """The answer to a renewal over a handshake with this certificate."""
        return self.ask(encode(messages.Renew(signing_request(key))), certificate)

    def leave(self, certificate: bytes | None) -> Answer:
        """The answer to a leave over a handshake with this certificate."""
        return self.ask(encode(messages.Leave()), certificate)

    def later(self, **duration: float) -> None:
        """Move the clock."""
        self.now += timedelta(**duration)


def joined(relay: Relays, key: Any, **options: Any) -> messages.Issued:
    """What a device with this key gets by a new token."""
    answer = relay.join(relay.token(**options), key)
    assert isinstance(answer, messages.Issued), answer
    return answer


def cause(answer: Answer) -> str:
    """The cause of a refusal."""
    assert isinstance(answer, messages.Refused), answer
    return answer.cause
