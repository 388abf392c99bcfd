"""Certificates for relays, and renewals that change what the holder may do."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from intermediate_server.errors import CertificateError
from intermediate_server.pki import Authority, keys, load_server_material
from intermediate_server.types import Role


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path / "state")
    made.init()
    return made


def names(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in found]


def test_a_relay_gets_a_certificate_for_what_is_dialled(authority: Authority) -> None:
    issued = authority.issue_server("Relay.Example.com", names=["192.0.2.1", "2001:db8::1"])
    files = authority.certificate_file(issued.name), authority.key_path(issued.name)
    load_server_material(*files, authority.certificate_path)
    [certificate] = keys.load_certificates(files[0])
    assert names(certificate) == ["relay.example.com", "192.0.2.1", "2001:db8::1", "ztna-server"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [keys.SERVER_AUTH]
    assert [(entry.name, entry.holder, entry.services) for entry in authority.entries()] == [
        ("Relay.Example.com", "server", ())
    ]
    again = authority.renew(issued.name)
    [renewed] = keys.load_certificates(files[0])
    assert (again.holder, names(renewed)) == ("server", names(certificate))
    assert list(renewed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [keys.SERVER_AUTH]
    load_server_material(*files)
    with pytest.raises(CertificateError, match="has no services"):
        authority.renew(issued.name, services=["web"])
    assert authority.revoke(issued.name)[0].revoked_at is not None


def test_an_address_names_files_too(authority: Authority) -> None:
    issued = authority.issue_server("2001:db8::1")
    assert authority.key_path(issued.name).exists()


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "a..b", "x" * 70])
def test_what_nobody_can_dial_is_no_relay(authority: Authority, name: str) -> None:
    with pytest.raises(CertificateError):
        authority.issue_server(name)
    assert authority.entries() == []


def test_a_renewal_may_change_the_services_and_keeps_the_key(authority: Authority) -> None:
    authority.issue(Role.AGENT, "laptop", services=["web"])
    [before] = keys.load_certificates(authority.certificate_file("laptop"))
    entry = authority.renew("laptop", services=["Web", "db"])
    [after] = keys.load_certificates(authority.certificate_file("laptop"))
    assert (entry.services, names(after)) == (("web", "db"), ["agent.web.ztna", "agent.db.ztna"])
    assert after.public_key() == before.public_key()
    assert authority.renew("laptop").services == ("web", "db")
    with pytest.raises(CertificateError, match="cannot be a service"):
        authority.renew("laptop", services=["a b"])
