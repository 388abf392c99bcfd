"""Certificate properties: no bytes do more than raise ``CertificateError``, and no odd name grants anything."""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.registering import wanted

from intermediate_server.errors import CertificateError
from intermediate_server.pki import describe, identity_of
from intermediate_server.policy import Allow, CertificatePolicy, Deny
from intermediate_server.types import Role

NAME = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "peer")])
KEY = ec.generate_private_key(ec.SECP256R1())
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
GOOD = (
    x509.CertificateBuilder()
    .subject_name(NAME)
    .issuer_name(NAME)
    .public_key(KEY.public_key())
    .serial_number(1)
    .not_valid_before(MOMENT)
    .not_valid_after(datetime(2027, 1, 1, tzinfo=UTC))
    .add_extension(x509.SubjectAlternativeName([x509.DNSName("agent.web.ztna")]), critical=False)
    .sign(KEY, hashes.SHA256())
)
DER, PEM = GOOD.public_bytes(Encoding.DER), GOOD.public_bytes(Encoding.PEM)

texts = st.text(max_size=80)
roles = st.sampled_from(Role)


def decide(names: tuple[str, ...], role: Role, service: str) -> Allow | Deny:
    return CertificatePolicy(anonymous=True).decide(wanted(*names, role=role, service=service))


@given(st.binary(max_size=200))
def test_any_bytes_are_an_identity_or_an_error(der: bytes) -> None:
    try:
        identity_of(der)
    except CertificateError as error:
        assert str(error).isprintable()


@given(st.data())
def test_a_damaged_certificate_is_an_identity_or_an_error(data: st.DataObject) -> None:
    der = bytearray(DER)
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = identity_of(bytes(der))
    except CertificateError:
        return
    assert len(found.key_hash) == 32


@given(st.binary(max_size=200) | st.builds(lambda cut, tail: PEM[:cut] + tail, st.integers(0, len(PEM)), st.binary()))
def test_any_file_is_described_or_refused(pem: bytes) -> None:
    try:
        assert describe(pem)
    except CertificateError as error:
        assert str(error).isprintable()


@given(st.lists(texts, max_size=5).map(tuple), roles, texts)
@example(("agent.web.ztna\0.evil.example",), Role.AGENT, "web")
@example(("agent..ztna",), Role.AGENT, "")
@example(("agent.*.ztna.",), Role.AGENT, "web")
@example(("agent.*",), Role.AGENT, "web")
@example(("*",), Role.AGENT, "*")
@example(("*.ztna",), Role.CONNECTOR, "web")
@example(("agent.web.ztna ",), Role.AGENT, "web")
@example(("agent.we\N{LATIN SMALL LETTER DOTLESS I}b.ztna",), Role.AGENT, "weib")
def test_nothing_is_granted_but_by_a_name_that_says_so(names: tuple[str, ...], role: Role, service: str) -> None:
    """A name grants a service, ASCII case apart, when it is exactly role, service and ``ztna``; ``*`` is all."""

    def fold(text: str) -> str:
        return "".join(chr(ord(char) + 32) if "A" <= char <= "Z" else char for char in text)

    exact = {f"{role.value}.{fold(service)}.ztna", f"{role.value}.*.ztna"}
    said = any(fold(name) in exact and fold(name) != f"{role.value}..ztna" for name in names)
    assert isinstance(decide(names, role, service), Allow) is said


@given(roles, st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=40))
def test_a_service_is_granted_by_its_own_name_to_its_own_role(role: Role, service: str) -> None:
    name = f"{role.value}.{service}.ztna"
    other = Role.CONNECTOR if role is Role.AGENT else Role.AGENT
    assert isinstance(decide((name,), role, service.upper()), Allow)
    assert isinstance(decide((name,), other, service), Deny)
    assert isinstance(decide((name,), role, service + "x"), Deny)
