"""What a server makes for itself: once, for its owner's eyes only, and again only when it must."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from intermediate_server.errors import CertificateError
from intermediate_server.pki import (
    DevelopmentFiles,
    ensure_development,
    ensure_secrets,
    host_names_and_addresses,
    load_server_material,
)
from intermediate_server.pki.keys import is_signed_by, key_pem, new_key, utc_now

NOW = utc_now()


def names_of(made: DevelopmentFiles) -> x509.SubjectAlternativeName:
    certificate = x509.load_pem_x509_certificate(made.certificate_pem)
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_ca_and_the_certificate_are_made_once_and_used_again(tmp_path: Path) -> None:
    first = ensure_development(tmp_path / "state", names=())
    again = ensure_development(tmp_path / "state", names=())
    assert (first.created, again.created) == (True, False)
    assert (first.ca_pem, first.certificate_pem, first.key_pem) == (again.ca_pem, again.certificate_pem, again.key_pem)
    ca, leaf = (x509.load_pem_x509_certificate(pem) for pem in (first.ca_pem, first.certificate_pem))
    assert is_signed_by(leaf, ca)
    assert not is_signed_by(ca, leaf)
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey), "clients in the field refuse Ed25519"
    assert key.curve.name == "secp256r1"
    assert leaf.not_valid_before_utc < NOW < leaf.not_valid_after_utc == first.not_after


def test_private_files_are_for_their_owner_only(tmp_path: Path) -> None:
    state = tmp_path / "state"
    ensure_development(state, names=())
    ensure_secrets(state)
    assert mode(state) == 0o700
    for name in ("ca.key", "server.key", "retry.key", "reset.key"):
        assert mode(state / name) == 0o600, name
    for name in ("ca.pem", "server.pem"):
        assert mode(state / name) == 0o644, name
        assert b"PRIVATE" not in (state / name).read_bytes()


def test_the_names_clients_verify(tmp_path: Path) -> None:
    made = ensure_development(tmp_path, names=("Relay.Example", "192.0.2.5", "no name\0at all", "ü"))
    names = names_of(made)
    assert names.get_values_for_type(x509.DNSName)[:3] == ["ztna-server", "localhost", "relay.example"]
    assert {IPv4Address("127.0.0.1"), IPv6Address("::1"), IPv4Address("192.0.2.5")} <= set(
        names.get_values_for_type(x509.IPAddress)
    )


def test_the_hosts_own_names_are_in_it(tmp_path: Path) -> None:
    host, *addresses = host_names_and_addresses()
    names = names_of(ensure_development(tmp_path))
    assert host.lower() in names.get_values_for_type(x509.DNSName)
    assert {ip_address(address) for address in addresses} <= set(names.get_values_for_type(x509.IPAddress))


@pytest.mark.parametrize("text", ["203.0.113.9", "2001:db8::9"])
def test_a_new_external_address_renews_the_certificate_with_the_same_key(tmp_path: Path, text: str) -> None:
    before = ensure_development(tmp_path, names=())
    address = ip_address(text)
    after = ensure_development(tmp_path, external_ip=address, names=())
    assert after.created
    assert address in names_of(after).get_values_for_type(x509.IPAddress)
    assert (after.key_pem, after.ca_pem) == (before.key_pem, before.ca_pem)
    assert not ensure_development(tmp_path, external_ip=address, names=()).created


@pytest.mark.parametrize(
    ("later", "renewed"), [(timedelta(days=700), False), (timedelta(days=796), True), (timedelta(days=2000), True)]
)
def test_it_is_renewed_a_month_before_its_end_and_after(tmp_path: Path, later: timedelta, renewed: bool) -> None:
    before = ensure_development(tmp_path, names=(), now=NOW)
    after = ensure_development(tmp_path, names=(), now=NOW + later)
    assert after.created is renewed
    assert after.not_after > NOW + later
    assert after.key_pem == before.key_pem


@pytest.mark.parametrize(
    "damage", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff" * 99]
)
def test_a_damaged_server_certificate_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    before = ensure_development(tmp_path, names=())
    before.cert.write_bytes(damage)
    assert ensure_development(tmp_path, names=()).created


def test_a_certificate_of_another_ca_or_key_is_made_anew(tmp_path: Path) -> None:
    mine = ensure_development(tmp_path / "mine", names=())
    other = ensure_development(tmp_path / "other", names=())
    mine.cert.write_bytes(other.certificate_pem)
    again = ensure_development(tmp_path / "mine", names=())
    assert again.created
    load_server_material(again.cert, again.key, again.ca_cert)


class TestTheCaIsNeverReplaced:
    def test_without_its_key(self, tmp_path: Path) -> None:
        made = ensure_development(tmp_path, names=())
        (tmp_path / "ca.key").unlink()
        with pytest.raises(CertificateError, match="restore it"):
            ensure_development(tmp_path, names=())
        assert (tmp_path / "ca.pem").read_bytes() == made.ca_pem

    def test_with_the_key_of_another(self, tmp_path: Path) -> None:
        ensure_development(tmp_path, names=())
        (tmp_path / "ca.key").write_bytes(key_pem(new_key()))
        with pytest.raises(CertificateError, match="does not belong"):
            ensure_development(tmp_path, names=())

    def test_when_it_is_damaged(self, tmp_path: Path) -> None:
        ensure_development(tmp_path, names=())
        (tmp_path / "ca.pem").write_bytes(b"nothing")
        with pytest.raises(CertificateError, match=r"ca\.pem is not a PEM certificate"):
            ensure_development(tmp_path, names=())

    def test_when_it_has_expired(self, tmp_path: Path) -> None:
        ensure_development(tmp_path, names=(), now=NOW)
        with pytest.raises(CertificateError, match="expired at"):
            ensure_development(tmp_path, names=(), now=NOW + timedelta(days=3700))


def test_a_certificate_never_outlives_its_ca(tmp_path: Path) -> None:
    ensure_development(tmp_path, names=(), now=NOW)
    late = ensure_development(tmp_path, names=(), now=NOW + timedelta(days=3600))
    assert late.not_after == NOW + timedelta(days=3650)


def test_a_key_that_everyone_may_read_is_refused_and_one_of_the_group_is_not(tmp_path: Path) -> None:
    made = ensure_development(tmp_path, names=())
    made.key.chmod(0o644)
    with pytest.raises(CertificateError, match="run: chmod 600"):
        ensure_development(tmp_path, names=())
    made.key.chmod(0o640)
    assert not ensure_development(tmp_path, names=()).created


def test_a_directory_that_everyone_may_write_to_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o777)
    with pytest.raises(CertificateError, match="run: chmod o-w"):
        ensure_development(state, names=())


def test_secrets_stay_and_differ(tmp_path: Path) -> None:
    first = ensure_secrets(tmp_path)
    assert first == ensure_secrets(tmp_path)
    assert first != ensure_secrets(tmp_path / "other")
    assert first.token_key != first.reset_key
    assert len(first.token_key) == len(first.reset_key) == 64
    assert first.token_key.hex() not in repr(first)
    (tmp_path / "retry.key").write_bytes(b"short")
    with pytest.raises(CertificateError, match="64 bytes"):
        ensure_secrets(tmp_path)


def test_starting_at_once_ends_with_the_same_files(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: ensure_development(tmp_path / "state", names=()), range(8)))
    assert len({(item.ca_pem, item.certificate_pem, item.key_pem) for item in made}) == 1
    assert sum(item.created for item in made) == 1


class TestServerMaterial:
    def test_what_belongs_together(self, tmp_path: Path) -> None:
        made = ensure_development(tmp_path, names=())
        material = load_server_material(made.cert, made.key, made.ca_cert)
        assert material.client_ca_pem == made.ca_pem
        assert material.not_after == made.not_after
        assert made.key_pem.decode()[40:80] not in repr(material) + repr(made)

    def test_what_does_not(self, tmp_path: Path) -> None:
        made = ensure_development(tmp_path / "a", names=())
        other = ensure_development(tmp_path / "b", names=())
        with pytest.raises(CertificateError, match="does not belong to the certificate"):
            load_server_material(made.cert, other.key)

    @pytest.mark.parametrize("which", ["cert", "key", "ca"])
    @pytest.mark.parametrize("content", [None, b"", b"\x00\x01", b"-----BEGIN X-----\n"])
    def test_bad_files_are_named_and_nothing_of_them_is_told(
        self, tmp_path: Path, which: str, content: bytes | None
    ) -> None:
        made = ensure_development(tmp_path, names=())
        files = {"cert": made.cert, "key": made.key, "ca": made.ca_cert}
        bad = tmp_path / "bad"
        if content is not None:
            bad.write_bytes(content)
            bad.chmod(0o600)
        files[which] = bad
        with pytest.raises(CertificateError, match=str(bad)):
            load_server_material(files["cert"], files["key"], files["ca"])

    def test_the_key_is_never_in_an_error(self, tmp_path: Path) -> None:
        made = ensure_development(tmp_path, names=())
        spoilt = made.key_pem.replace(b"PRIVATE KEY", b"SECRET KEY")
        made.key.write_bytes(spoilt)
        with pytest.raises(CertificateError) as caught:
            load_server_material(made.cert, made.key)
        assert spoilt.decode()[40:80] not in str(caught.value)
