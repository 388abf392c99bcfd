"""Of a signing request its key and its signature count, and weak or foreign keys are refused."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.issuing import signing_request

from intermediate_server.join.csr import RequestError, read
from intermediate_server.pki import keys

GOOD = signing_request(ec.generate_private_key(ec.SECP256R1()), "agent.secret.ztna")


@pytest.fixture(scope="module")
def rsa_2048() -> RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_keys_on_two_curves_are_taken(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    assert keys.public_bytes(read(signing_request(key))[1]) == keys.public_bytes(key.public_key())


def test_ed25519_and_rsa_keys_are_taken(rsa_2048: RSAPrivateKey) -> None:
    for key in (ed25519.Ed25519PrivateKey.generate(), rsa_2048):
        assert keys.public_bytes(read(signing_request(key))[1]) == keys.public_bytes(key.public_key())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: ec.generate_private_key(ec.SECP521R1()), "weak-key"),
        (lambda: ec.generate_private_key(ec.SECP256K1()), "weak-key"),
        (lambda: rsa.generate_private_key(65537, 1024), "weak-key"),
        (lambda: rsa.generate_private_key(3, 2048), "weak-key"),
        (lambda: dsa.generate_private_key(2048), "weak-key"),
        (ed448.Ed448PrivateKey.generate, "weak-key"),
    ],
    ids=["P-521", "secp256k1", "RSA 1024", "RSA e=3", "DSA", "Ed448"],
)
def test_other_keys_are_refused(make: object, reason: str) -> None:
    assert callable(make)
    key = make()
    with pytest.raises(RequestError, match="P-256") as caught:
        read(signing_request(key))
    assert caught.value.cause == reason


def test_a_signature_by_another_key_or_by_a_broken_digest_is_refused(rsa_2048: RSAPrivateKey) -> None:
    damaged = bytearray(GOOD)
    damaged[-3] ^= 1
    with pytest.raises(RequestError, match="not signed by its own key"):
        read(bytes(damaged))
    with pytest.raises(RequestError, match="SHA-256"):
        read(signing_request(rsa_2048, digest=hashes.SHA224()))


def test_a_signature_that_leaves_bits_out_is_refused() -> None:
    made = (signing_request(ec.generate_private_key(ec.SECP256R1())) for _ in range(200))
    even = bytearray(next(der for der in made if der[-1] % 2 == 0))
    at = even.rindex(b"\0\x30")
    even[at] = 1
    with pytest.raises(RequestError, match="not signed by its own key"):
        read(bytes(even))


@pytest.mark.parametrize("data", [b"", b"\x30", GOOD[:-1], GOOD + b"\0", b"\x30\x82\xff\xff" + GOOD])
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        read(data)
    assert caught.value.cause == "csr"


@settings(max_examples=300)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255), st.binary(max_size=3))
def test_damage_ends_in_a_refusal_or_leaves_key_and_signature_whole(at: int, flip: int, more: bytes) -> None:
    damaged = GOOD[:at] + bytes([GOOD[at] ^ flip]) + more + GOOD[at + 1 :]
    with pytest.raises(RequestError):
        read(damaged)
