"""Issuing, listing, renewing and revoking, and the revocation list that comes of it."""

from __future__ import annotations

import stat
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from intermediate_server.errors import CertificateError
from intermediate_server.pki import Authority, ensure_development, identity_of
from intermediate_server.pki.authority import DEFAULT_DAYS
from intermediate_server.pki.keys import check_pair, is_signed_by, load_certificates, load_key, utc_now
from intermediate_server.pki.lists import is_list_of, parse_crls
from intermediate_server.types import Role

NOW = utc_now()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path / "state")
    made.init(now=NOW)
    return made


def crl_of(authority: Authority) -> x509.CertificateRevocationList:
    """The revocation list, its signature checked."""
    crl = x509.load_pem_x509_crl(authority.crl_path.read_bytes())  # the first of the file
    key = load_certificates(authority.certificate_path)[0].public_key()
    assert crl.is_signature_valid(key)  # type: ignore[arg-type]  # the development CA's key can sign
    return crl


def revoked(authority: Authority) -> set[str]:
    return {f"{item.serial_number:x}" for item in crl_of(authority)}


def number(authority: Authority) -> int:
    return crl_of(authority).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def test_init_makes_the_ca_once_with_an_empty_list(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "state")
    assert authority.init()
    before = authority.certificate_path.read_bytes(), authority.crl_path.read_bytes()
    assert not authority.init()
    assert before == (authority.certificate_path.read_bytes(), authority.crl_path.read_bytes())
    assert revoked(authority) == set()
    assert authority.entries() == []


def test_the_ca_is_the_one_of_the_server(tmp_path: Path) -> None:
    made = ensure_development(tmp_path, names=())
    authority = Authority(tmp_path)
    assert not authority.init()
    assert authority.certificate_path.read_bytes() == made.ca_pem


@pytest.mark.parametrize("kind", ["p256", "ed25519"])
def test_an_issued_certificate(authority: Authority, kind: str) -> None:
    entry = authority.issue(
        Role.AGENT,
        "laptop",
        services=["Web", " db.prod ", "web"],
        key_type=kind,  # type: ignore[arg-type]  # from the parametrization
        now=NOW,
    )
    assert entry.services == ("web", "db.prod")
    certificate = load_certificates(authority.certificate_file("laptop"))[0]
    key = load_key(authority.key_path("laptop"))
    check_pair(certificate, key, "laptop")
    assert isinstance(key, ed25519.Ed25519PrivateKey) is (kind == "ed25519")
    assert stat.S_IMODE(authority.key_path("laptop").stat().st_mode) == 0o600
    assert is_signed_by(certificate, load_certificates(authority.certificate_path)[0])
    identity = identity_of(certificate.public_bytes(Encoding.DER))
    assert identity.dns_names == ("agent.web.ztna", "agent.db.prod.ztna")
    assert identity.fingerprint == entry.fingerprint
    assert entry.not_after == NOW + timedelta(days=DEFAULT_DAYS)
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH], "it must not pass for a server"
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    assert authority.entries() == [entry]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 65, "ü", "a\n"])
def test_names_that_could_be_paths_or_worse_are_refused(authority: Authority, name: str) -> None:
    with pytest.raises(CertificateError, match="cannot be a name"):
        authority.issue(Role.AGENT, name, services=["web"])
    assert authority.entries() == []


@pytest.mark.parametrize("service", ["", "a b", "-x", "x.", "a*", "**", "ü", "x" * 201, "a\0b"])
def test_services_a_certificate_cannot_name(authority: Authority, service: str) -> None:
    with pytest.raises(CertificateError, match="cannot be a service"):
        authority.issue(Role.CONNECTOR, "office", services=["web", service])


def test_a_certificate_needs_a_service_and_a_sane_validity(authority: Authority) -> None:
    with pytest.raises(CertificateError, match="at least one service"):
        authority.issue(Role.AGENT, "x", services=[])
    for days in (0, -1, 3651):
        with pytest.raises(CertificateError, match="out of range, 1 to 3650"):
            authority.issue(Role.AGENT, "x", services=["*"], days=days)


def test_no_certificate_outlives_the_ca(authority: Authority) -> None:
    entry = authority.issue(Role.AGENT, "x", services=["*"], days=3650, now=NOW + timedelta(days=10))
    assert entry.not_after == NOW + timedelta(days=3650)


def test_a_name_is_issued_again_only_when_nothing_of_it_is_live(authority: Authority) -> None:
    authority.issue(Role.AGENT, "x", services=["web"], days=1, now=NOW)
    with pytest.raises(CertificateError, match="pki renew x"):
        authority.issue(Role.AGENT, "x", services=["web"], now=NOW)
    authority.issue(Role.AGENT, "x", services=["web"], now=NOW + timedelta(days=2))
    authority.revoke("x", now=NOW + timedelta(days=3))
    authority.issue(Role.AGENT, "x", services=["web"], now=NOW + timedelta(days=3))
    assert len(authority.entries()) == 3


def test_a_renewal_keeps_key_names_and_services(authority: Authority) -> None:
    first = authority.issue(Role.CONNECTOR, "office", services=["web"], now=NOW)
    old = load_certificates(authority.certificate_file("office"))[0]
    authority.key_path("office").unlink()  # it is on the holder's device
    second = authority.renew("office", days=10, now=NOW + timedelta(days=300))
    new = load_certificates(authority.certificate_file("office"))[0]
    assert new.public_key() == old.public_key()
    assert new.serial_number != old.serial_number
    assert (second.role, second.services, second.name) == (first.role, first.services, first.name)
    assert second.not_after == NOW + timedelta(days=310)


def test_what_cannot_be_renewed(authority: Authority) -> None:
    with pytest.raises(CertificateError, match="was not issued here"):
        authority.renew("nobody")
    authority.issue(Role.AGENT, "y", services=["web"])
    authority.revoke("y")
    with pytest.raises(CertificateError, match="was revoked"):
        authority.renew("y")


def test_revoking_by_name_serial_and_fingerprint(authority: Authority) -> None:
    a = authority.issue(Role.AGENT, "a", services=["web"])
    renewed = authority.renew("a")
    b = authority.issue(Role.AGENT, "b", services=["web"])
    c = authority.issue(Role.AGENT, "c", services=["web"])
    authority.issue(Role.AGENT, "d", services=["web"])
    before = number(authority)
    assert {entry.serial for entry in authority.revoke("a")} == {a.serial, renewed.serial}
    assert [entry.serial for entry in authority.revoke(b.serial.upper())] == [b.serial]
    pairs = [c.fingerprint[at : at + 2].upper() for at in range(0, 64, 2)]
    assert [entry.serial for entry in authority.revoke(":".join(pairs))] == [c.serial]
    assert revoked(authority) == {a.serial, renewed.serial, b.serial, c.serial}
    assert number(authority) == before + 3
    assert [entry.name for entry in authority.entries() if entry.revoked_at is None] == ["d"]
    with pytest.raises(CertificateError, match="was not issued here"):
        authority.revoke("e")


@pytest.mark.parametrize(
    "written",
    [
        "{0}",
        "{0:X}",
        "0x{0:x}",
        "serial={0:040X}",
        "Serial Number: 0x{0:X}",
        " {0:040X}\n",
        "{colons}",
        "{COLONS}",
        "sha256 Fingerprint={FINGERPRINT}",
        "SHA256 Fingerprint={FINGERPRINT}",
        "{FINGERPRINT}",
    ],
)
def test_revoking_by_what_other_programs_print(
    authority: Authority, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As openssl does, with a zero in front.
    monkeypatch.setattr(x509, "random_serial_number", lambda: 0x0A1B2C3D4E5F)
    entry = authority.issue(Role.AGENT, "a", services=["web"])
    assert entry.serial == "a1b2c3d4e5f"
    pairs = "0a:1b:2c:3d:4e:5f"
    fingerprint = ":".join(entry.fingerprint[at : at + 2].upper() for at in range(0, 64, 2))
    number = int(entry.serial, 16)
    text = written.replace("{0}", "{0:x}").format(number, colons=pairs, COLONS=pairs.upper(), FINGERPRINT=fingerprint)
    assert authority.revoke(text) == [replace(entry, revoked_at=authority.entries()[0].revoked_at)]


@pytest.mark.parametrize(
    "other", ["", "serial=", "0x", ":", "0a::1b", "sha1 Fingerprint=0A", "g", "-a1", "a1b2c3d4e5f0"]
)
def test_what_names_nothing_revokes_nothing(authority: Authority, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(x509, "random_serial_number", lambda: 0x0A1B2C3D4E5F)
    authority.issue(Role.AGENT, "a", services=["web"])
    with pytest.raises(CertificateError, match="was not issued here"):
        authority.revoke(other)


def test_a_name_that_looks_like_a_serial_is_a_name(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(x509, "random_serial_number", lambda: 0xCAFE)
    authority.issue(Role.AGENT, "a", services=["web"])
    monkeypatch.undo()
    named = authority.issue(Role.AGENT, "cafe", services=["web"])
    assert [entry.serial for entry in authority.revoke("cafe")] == [named.serial]
    assert [entry.name for entry in authority.revoke("CAFE")] == ["a"]


def test_revoking_again_keeps_the_first_date(authority: Authority) -> None:
    authority.issue(Role.AGENT, "a", services=["web"], now=NOW)
    authority.revoke("a", now=NOW)
    assert authority.revoke("a", now=NOW + timedelta(days=1))[0].revoked_at == NOW
    assert next(iter(crl_of(authority))).revocation_date_utc == NOW


def test_the_list_holds_as_long_as_the_ca_and_names_it(authority: Authority) -> None:
    ca = load_certificates(authority.certificate_path)[0]
    crl = crl_of(authority)
    assert crl.issuer == ca.subject
    assert crl.next_update_utc == ca.not_valid_after_utc
    own = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == own


def test_what_has_expired_leaves_the_list(authority: Authority) -> None:
    authority.issue(Role.AGENT, "a", services=["web"], days=1, now=NOW)
    late = authority.issue(Role.AGENT, "b", services=["web"], now=NOW)
    authority.revoke("a", now=NOW)
    authority.revoke("b", now=NOW + timedelta(days=2))
    assert revoked(authority) == {late.serial}


def test_an_index_from_an_old_copy_lets_nobody_back_in(authority: Authority, tmp_path: Path) -> None:
    index = tmp_path / "state" / "identity.db"
    entry = authority.issue(Role.AGENT, "a", services=["web"])
    copy = index.read_bytes()
    authority.revoke("a")
    index.write_bytes(copy)
    other = authority.issue(Role.AGENT, "b", services=["web"])
    authority.revoke("b")
    assert revoked(authority) == {entry.serial, other.serial}


def lists(authority: Authority) -> list[x509.CertificateRevocationList]:
    return parse_crls(authority.crl_path.read_bytes(), authority.crl_path)[0]


@pytest.mark.parametrize("moved", ["ca.pem ca.key", "ca.pem", "ca.pem ca.key crl.pem"])
def test_the_list_follows_a_new_ca(authority: Authority, moved: str) -> None:
    entry = authority.issue(Role.AGENT, "a", services=["web"], now=NOW)
    authority.revoke("a", now=NOW)
    old = load_certificates(authority.certificate_path)[0]
    for name in moved.split():
        authority.certificate_path.with_name(name).unlink()
    ensure_development(authority.certificate_path.parent, names=())
    new = load_certificates(authority.certificate_path)[0]
    first, *others = lists(authority)
    assert is_list_of(first, new)
    assert revoked(authority) == {entry.serial}
    # What the old CA revoked stays so for as long as anybody trusts it.
    kept = [(item.issuer, [f"{each.serial_number:x}" for each in item]) for item in others]
    assert kept == ([] if "crl.pem" in moved else [(old.subject, [entry.serial])])
    before = authority.crl_path.read_bytes()
    assert not authority.init()
    ensure_development(authority.certificate_path.parent, names=())
    assert authority.crl_path.read_bytes() == before, "once is enough"
    authority.issue(Role.AGENT, "b", services=["web"])
    authority.revoke("b")
    assert len(lists(authority)) == 1 + len(others)
    authority.issue(Role.AGENT, "c", services=["web"])
    authority.revoke("c", now=old.not_valid_after_utc)
    assert len(lists(authority)) == 1, "a CA that has ended needs no list"


def test_a_list_of_an_earlier_ca_is_written_again_by_init(authority: Authority) -> None:
    """As a directory is that an earlier version has left."""
    authority.issue(Role.AGENT, "a", services=["web"])
    authority.revoke("a")
    list_of_old = authority.crl_path.read_bytes()
    for name in ("ca.pem", "ca.key"):
        authority.certificate_path.with_name(name).unlink()
    authority.init()
    authority.crl_path.write_bytes(list_of_old)
    assert not authority.init()
    assert is_list_of(lists(authority)[0], load_certificates(authority.certificate_path)[0])


def test_a_damaged_list_is_an_error(authority: Authority) -> None:
    authority.issue(Role.AGENT, "a", services=["web"])
    authority.crl_path.write_bytes(b"nothing")
    with pytest.raises(CertificateError, match="move it away"):
        authority.revoke("a")


def test_without_a_ca_nothing_is_issued(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "none")
    for act in (authority.entries, lambda: authority.revoke("a"), lambda: authority.renew("a")):
        with pytest.raises(CertificateError, match="pki init"):
            act()
    assert not (tmp_path / "none").exists()
