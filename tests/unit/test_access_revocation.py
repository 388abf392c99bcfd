"""Revocation lists and lists of denied fingerprints: what is read, what is refused, and whom it hits."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.ca import ISSUED, Ca, der

from intermediate_server.errors import CertificateError
from intermediate_server.pki import keys, lists
from intermediate_server.pki.inspect import subject_of
from intermediate_server.pki.revocation import (
    MAX_CHAIN,
    Revocations,
    certificate_ids,
    load_revocations,
)


def pem(crl: x509.CertificateRevocationList) -> bytes:
    return crl.public_bytes(Encoding.PEM)


Load = Callable[..., Revocations]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def read(data: bytes, ca_pem: bytes) -> Revocations:
        path = tmp_path / "list"
        path.write_bytes(data)
        return load_revocations(crls=[path], deny_lists=(), ca_pem=ca_pem)

    return read


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_a_revoked_certificate_is_refused(load: Load, encoding: Encoding) -> None:
    ca = Ca()
    bad, good = ca.leaf(), ca.leaf()
    found = load(ca.crl(bad).public_bytes(encoding), ca.pem)
    assert found.refusal(certificate_ids([der(bad)])) == f"certificate with serial {bad.serial_number:x} is revoked"
    assert found.refusal(certificate_ids([der(good)])) is None
    assert found.next_update == ISSUED + timedelta(days=7)
    assert not found.overdue(ISSUED)
    assert found.overdue(ISSUED + timedelta(days=7))


def test_serial_numbers_count_within_their_issuer(load: Load) -> None:
    one, two = Ca("one"), Ca("two")
    bad = one.leaf()
    found = load(pem(one.crl(bad)) + pem(two.crl()), one.pem + two.pem)
    (identity,) = certificate_ids([der(bad)])
    assert found.refusal([identity]) is not None
    (elsewhere,) = certificate_ids([der(two.leaf())])
    assert found.refusal([elsewhere._replace(serial=identity.serial)]) is None


def test_a_revoked_intermediate_takes_its_leaves_along(load: Load) -> None:
    root = Ca("root")
    below = Ca("below", above=root)
    leaf = below.leaf()
    found = load(pem(root.crl(below.certificate)), root.pem)
    refusal = found.refusal(certificate_ids([der(leaf), der(below.certificate)]))
    assert refusal is not None
    assert refusal.startswith("intermediate certificate")


def test_another_spelling_of_the_issuer_is_the_same_issuer(load: Load) -> None:
    ca = Ca("spelt")
    bad = ca.leaf()
    other = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "spelt", x509.name._ASN1Type.PrintableString)])
    assert other.public_bytes() != ca.certificate.subject.public_bytes()
    found = load(pem(ca.crl(bad, name=other)), ca.pem)
    assert found.refusal(certificate_ids([der(bad)])) is not None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a CRL"),
        (b"hello", "not a CRL"),
        (b"-----BEGIN X509 CRL-----\naGVsbG8=\n-----END X509 CRL-----\n", "not a CRL"),
        (pem(Ca("stranger").crl()), "not signed by the client CA"),
        (pem(Ca("ca").crl()), "not signed by the client CA"),
        (pem(Ca().crl()) + b"-----BEGIN X509 CRL-----\n", "X509 CRL in line 7 has no END; the file is cut short"),
        (Ca().pem, "not a CRL"),
    ],
)
def test_a_list_that_cannot_be_trusted_is_an_error(load: Load, data: bytes, message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        load(data, Ca("ca").pem)


def test_large_lists_are_read_by_another_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A single call of the library would hold up this one for seconds, whatever the thread."""
    ca, other = Ca("one"), Ca("two")
    bad, worse = ca.leaf(), other.leaf()
    paths = [tmp_path / "one.pem", tmp_path / "two.der"]
    paths[0].write_bytes(pem(ca.crl(bad)).replace(b"\n", b"\r\n"))
    paths[1].write_bytes(other.crl(worse, due=ISSUED + timedelta(days=1)).public_bytes(Encoding.DER))
    trusted = ca.pem + other.pem
    here = lists.read_lists(paths, trusted)
    monkeypatch.setattr(lists, "LARGE", 100)
    monkeypatch.setattr(lists, "_read_here", None)
    there = lists.read_lists(paths, trusted)
    assert there == here
    assert set(there.serials) == {
        (subject_of(issuer.certificate), leaf.serial_number) for issuer, leaf in ((ca, bad), (other, worse))
    }
    assert there.next_update == ISSUED + timedelta(days=1)
    with pytest.raises(CertificateError, match="not signed by the client CA"):
        lists.read_lists(paths, ca.pem)
    with pytest.raises(CertificateError, match=r"gone\.pem"):
        lists.read_lists([*paths, tmp_path / "gone.pem"], trusted)


def test_a_process_that_cannot_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ca = Ca()
    path = tmp_path / "crl.pem"
    path.write_bytes(pem(ca.crl()))
    monkeypatch.setattr(lists, "LARGE", 100)
    for program in ("/bin/false", "/nowhere/python"):
        monkeypatch.setattr("sys.executable", program)
        with pytest.raises(CertificateError, match=r"crl\.pem cannot be read"):
            lists.read_lists([path], ca.pem)


def test_one_bad_list_of_several_is_an_error(load: Load) -> None:
    ca = Ca()
    with pytest.raises(CertificateError, match="not signed"):
        load(pem(ca.crl()) + pem(Ca("stranger").crl()), ca.pem)


def test_an_intermediate_revokes_what_it_issued(load: Load) -> None:
    root = Ca("root")
    below = Ca("below", above=root)
    lowest = Ca("lowest", above=below)
    bad, good = lowest.leaf(), lowest.leaf()
    whole = pem(lowest.crl(bad)) + lowest.pem + pem(root.crl()) + below.pem
    found = load(whole, root.pem)
    chain = [der(lowest.certificate), der(below.certificate)]
    assert found.refusal(certificate_ids([der(bad), *chain])) is not None
    assert found.refusal(certificate_ids([der(good), *chain])) is None
    assert load(pem(below.crl()), root.pem + below.pem) == load(pem(below.crl()) + below.pem, root.pem)


def test_a_list_of_an_intermediate_that_nobody_certified_is_an_error(load: Load) -> None:
    root = Ca("root")
    below = Ca("below", above=root)
    stranger = Ca("below", above=Ca("root"))
    for data in (pem(below.crl()), pem(stranger.crl()) + stranger.pem, pem(stranger.crl()) + below.pem):
        with pytest.raises(CertificateError, match="not signed by the client CA"):
            load(data, root.pem)


def test_a_leaf_is_no_issuer_of_lists(load: Load) -> None:
    root = Ca("root")
    leaf = Ca("root")
    leaf.certificate = root.sign("root", leaf.key, is_ca=False)
    with pytest.raises(CertificateError, match="not signed by the client CA"):
        load(pem(leaf.crl()) + leaf.pem, root.pem)


@pytest.mark.parametrize(
    "extension",
    [
        x509.DeltaCRLIndicator(1),
        x509.IssuingDistributionPoint(None, None, False, False, None, True, False),
        x509.IssuingDistributionPoint(
            None, None, False, False, frozenset([x509.ReasonFlags.key_compromise]), False, False
        ),
    ],
)
def test_half_a_list_is_an_error(load: Load, extension: x509.ExtensionType) -> None:
    ca = Ca()
    with pytest.raises(CertificateError, match="delta or indirect"):
        load(pem(ca.crl(extension=extension)), ca.pem)


def test_a_list_of_user_certificates_is_whole(load: Load) -> None:
    ca = Ca()
    point = x509.IssuingDistributionPoint(None, None, True, False, None, False, False)
    assert load(pem(ca.crl(extension=point)), ca.pem).serials == frozenset()


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="not found"):
        load_revocations(crls=[tmp_path / "no"], deny_lists=(), ca_pem=Ca().pem)
    with pytest.raises(CertificateError, match="not found"):
        load_revocations(crls=[], deny_lists=[tmp_path / "no"], ca_pem=None)


def test_the_deny_list_is_read_strictly(tmp_path: Path) -> None:
    ca = Ca()
    leaf, other = ca.leaf(), ca.leaf()
    fingerprint = leaf.fingerprint(keys.SHA256).hex()
    path = tmp_path / "denied"
    path.write_text(f"# lost\n\n  {fingerprint.upper()} # laptop of ann\n")
    found = load_revocations(crls=[], deny_lists=[path], ca_pem=None)
    assert found.refusal(certificate_ids([der(leaf)])) == f"certificate {fingerprint} is on the deny list"
    assert found.refusal(certificate_ids([der(other)])) is None
    for text in (fingerprint[1:], f"{fingerprint} {fingerprint}", "sha256", f"{fingerprint}x"):
        path.write_text(f"{fingerprint}\n{text}\n")
        with pytest.raises(CertificateError, match="line 2: not a SHA-256 fingerprint"):
            load_revocations(crls=[], deny_lists=[path], ca_pem=None)
    path.write_bytes(b"\xff")
    with pytest.raises(CertificateError, match="not UTF-8"):
        load_revocations(crls=[], deny_lists=[path], ca_pem=None)


@pytest.mark.parametrize("chain", [[b""], [b"\x30"], [b"\x30\x82"], [bytes(500)], [b"\x30\x03\x30\x01\xa0"]])
def test_certificates_that_cannot_be_read_are_an_error(chain: list[bytes]) -> None:
    with pytest.raises(CertificateError):
        certificate_ids(chain)


def test_every_cut_of_a_certificate_is_an_error_or_the_same() -> None:
    whole = der(Ca().leaf())
    (identity,) = certificate_ids([whole])
    for end in range(len(whole)):
        with pytest.raises(CertificateError):
            certificate_ids([whole[:end]])
    assert identity.serial == x509.load_der_x509_certificate(whole).serial_number


def test_a_chain_has_a_bound() -> None:
    leaf = der(Ca().leaf())
    assert len(certificate_ids([leaf] * MAX_CHAIN)) == MAX_CHAIN
    with pytest.raises(CertificateError, match="certificates"):
        certificate_ids([leaf] * (MAX_CHAIN + 1))
