"""Files of certificates as editors, shells and people leave them: everything in them counts, or the error says what."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.ca import Ca, der

from intermediate_server.errors import CertificateError
from intermediate_server.pki import keys, pem

CAS = [Ca(f"ca {number}") for number in range(3)]
BOM = b"\xef\xbb\xbf"

Spoil = Callable[[bytes], bytes]

newlines = st.sampled_from(
    [
        lambda text: text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"\n", b"\r"),
        lambda text: text.replace(b"\n", b"\n   "),
        lambda text: text.replace(b"\n", b" \n\n"),
        lambda text: text.replace(b"\n", b"\n\t"),
    ]
)
between = st.sampled_from([b"", b"\n", b"\r\n", BOM, b"\n" + BOM, b"\n# the second one\n", b"subject=CN = x\n", b"\0"])
wide = st.sampled_from([lambda text: text, lambda text: text.decode("latin-1").encode("utf-16")])


@given(st.lists(st.tuples(st.sampled_from(CAS), newlines, between), min_size=1, max_size=4), between, wide)
def test_whatever_stands_between_certificates_all_of_them_count(
    parts: list[tuple[Ca, Spoil, bytes]], front: bytes, wide: Spoil
) -> None:
    file = wide(front + b"".join(spoil(ca.pem.rstrip()) + after for ca, spoil, after in parts))
    found = keys.parse_certificates(file, "bundle.pem")
    assert [der(item) for item in found] == [der(ca.certificate) for ca, _, _ in parts]
    # What the engine is given is plain to any reader.
    assert x509.load_pem_x509_certificates(keys.certificate_pem(*found)) == found


@given(st.integers(0, 2), st.data())
def test_a_damaged_certificate_is_an_error_and_never_left_out(which: int, data: st.DataObject) -> None:
    bodies = [bytearray(ca.pem) for ca in CAS]
    at = data.draw(st.integers(0, len(bodies[which]) - 2))
    bodies[which][at : at + 1] = data.draw(st.binary(max_size=3))
    try:
        found = keys.parse_certificates(b"".join(bodies), "bundle.pem")
    except CertificateError as error:
        assert str(error).startswith("certificate bundle.pem")
        assert str(error).isprintable()
    else:
        assert len(found) == len(CAS)


@given(st.binary(max_size=300) | st.builds(lambda cut: b"".join(ca.pem for ca in CAS)[:cut], st.integers(0, 2000)))
def test_any_bytes_are_certificates_or_an_error(data: bytes) -> None:
    for read in (keys.parse_certificates, keys.parse_key):
        try:
            assert read(data, "file")
        except CertificateError as error:
            assert str(error).isprintable()


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (CAS[0].pem + CAS[1].pem[:-10], r"CERTIFICATE in line \d+ has no END; the file is cut short"),
        (CAS[0].pem[10:] + CAS[1].pem, r"line 1 is no BEGIN or END line|CERTIFICATE in line \d+ has no BEGIN"),
        (CAS[0].pem.replace(b"-----END CERTIFICATE-----\n", b"") + CAS[1].pem, "CERTIFICATE in line 1 has no END"),
        (CAS[0].pem + CAS[1].pem.replace(b"-----", b"----"), "is no BEGIN or END line"),
        (CAS[0].pem + CAS[1].pem.replace(b"CERTIFICATE", b"certificate"), "is no BEGIN or END line"),
        (
            CAS[0].pem + b"-----BEGIN CERTIFICATE-----\nTUlJ\n-----END CERTIFICATE-----\n",
            "certificate 2 of 2, in line ",
        ),
        (CAS[0].pem + b"-----BEGIN CERTIFICATE-----\nT!\n-----END CERTIFICATE-----\n", "begins in line .* is damaged"),
        (der(CAS[0].certificate), "seems to be DER; convert it with"),
        (keys.key_pem(CAS[0].key), "it holds PRIVATE KEY"),
        (b"", "check the file"),
    ],
)
def test_what_does_not_count_is_named(file: bytes, said: str) -> None:
    with pytest.raises(CertificateError, match=said):
        keys.parse_certificates(file, "bundle.pem")


@pytest.mark.parametrize("kind", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize(
    "spoil", [lambda text: text.replace(b"\n", b"\r\n"), lambda text: BOM + text], ids=["crlf", "bom"]
)
def test_a_key_is_found_beside_what_tools_write_around_it(kind: PrivateFormat, spoil: Spoil) -> None:
    key = keys.new_key()
    around = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n" + CAS[0].pem
    found = keys.parse_key(spoil(around + key.private_bytes(Encoding.PEM, kind, NoEncryption())), "k.pem")
    assert keys.key_pem(found) == keys.key_pem(key)


@pytest.mark.parametrize("kind", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_a_passphrase_is_named_as_one(kind: PrivateFormat) -> None:
    secret = keys.new_key().private_bytes(Encoding.PEM, kind, BestAvailableEncryption(b"secret"))
    with pytest.raises(CertificateError, match=r"k\.pem has a passphrase"):
        keys.parse_key(secret, "k.pem")


def test_a_section_is_written_as_everybody_reads_it() -> None:
    [section] = pem.read(CAS[0].pem.replace(b"\n", b"\r\n   "), "file")
    assert section.pem() == CAS[0].pem
