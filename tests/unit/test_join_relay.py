"""What tokens say of a relay: its addresses, the certificate they pin, and the settings that a server leaves behind."""

from __future__ import annotations

import json
import stat
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from tests.unit.ca import Ca

from intermediate_server.config import Settings
from intermediate_server.join import relay
from intermediate_server.join.chain import JoiningOff, join_chain
from intermediate_server.join.tokens import Token
from intermediate_server.pki import Authority, ensure_development, keys
from intermediate_server.types import Role


def settings(directory: Path, **values: Any) -> Settings:
    return Settings.model_validate({"state_dir": str(directory), **values})


def sha256(certificate: x509.Certificate) -> bytes:
    return certificate.fingerprint(keys.SHA256)


@pytest.mark.parametrize(
    ("values", "servers"),
    [
        ({"public_address": "Relay.Example.com"}, ("relay.example.com",)),
        ({"public_address": "relay.example.com", "port": 5000}, ("relay.example.com:5000",)),
        ({"public_address": ["relay.example.com:4433", "[2001:db8::1]:443"], "port": 5000}, None),
        ({"public_address": "2001:db8::1"}, ("2001:db8::1",)),
        ({"external_ip": "203.0.113.1", "port": 5000}, ("203.0.113.1:5000",)),
        ({"public_address": "a", "external_ip": "203.0.113.1"}, ("a",)),
        ({"bind": ["192.0.2.1", "127.0.0.1"]}, ("192.0.2.1",)),
        ({"bind": ["10.0.0.1", "8.8.8.8"]}, ("8.8.8.8",)),
        ({"bind": "127.0.0.1", "port": 5000}, ("127.0.0.1:5000",)),
    ],
    ids=str,
)
def test_where_a_relay_is_reached(tmp_path: Path, values: dict[str, Any], servers: tuple[str, ...] | None) -> None:
    expected = servers or ("relay.example.com", "[2001:db8::1]:443")
    assert relay.servers_of(settings(tmp_path, **values)) == expected
    assert Token.new(Role.AGENT, pin=bytes(32), servers=expected).servers == expected


def test_without_any_setting_it_is_an_address_of_this_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def host(routed: list[str], others: list[str]) -> tuple[str, ...]:
        monkeypatch.setattr(relay, "route_addresses", lambda: map(ip_address, routed))
        monkeypatch.setattr(relay, "interface_addresses", lambda: map(ip_address, others))
        return relay.servers_of(settings(tmp_path))

    assert host(["10.0.0.5"], ["127.0.0.1", "172.17.0.1", "10.0.0.5"]) == ("10.0.0.5",)
    assert host(["10.0.0.5"], ["8.8.8.8", "fe80::1"]) == ("8.8.8.8",)
    assert host([], ["127.0.0.1", "192.168.1.2"]) == ("192.168.1.2",)
    assert host([], ["127.0.0.1", "::1", "fe80::1"]) == ("127.0.0.1",)


@pytest.mark.parametrize(
    ("servers", "local"),
    [
        (["127.0.0.1"], True),
        (["localhost:5000", "::1"], True),
        (["127.0.0.1", "relay.example.com"], False),
        (["10.0.0.1"], False),
    ],
)
def test_addresses_of_this_host_only_are_known(servers: list[str], local: bool) -> None:
    assert relay.is_local(servers) is local


def test_the_development_certificate_is_shown_with_its_ca(tmp_path: Path) -> None:
    made = ensure_development(tmp_path, names=())
    [ca] = keys.load_certificates(made.ca_cert)
    chain = join_chain(settings(tmp_path), made.certificate_pem)
    assert chain.pin == sha256(ca)
    assert chain.appended == chain.ca_pem == keys.certificate_pem(ca)
    assert chain.server_name == "ztna-server"


def test_a_certificate_of_our_ca_is_shown_with_it(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.init()
    authority.issue_server("relay.example.com")
    chain = join_chain(settings(tmp_path), authority.certificate_file("relay.example.com").read_bytes())
    assert chain.pin == sha256(keys.load_certificates(authority.certificate_path)[0])
    assert chain.appended == authority.bundle()


def test_a_public_chain_is_pinned_at_its_last_intermediate(tmp_path: Path) -> None:
    Authority(tmp_path).init()
    middle = Ca("middle", above=Ca("root"))
    leaf = keys.sign(
        subject=keys.common_name("relay"),
        public_key=keys.new_key().public_key(),
        authority=middle.certificate,
        authority_key=middle.key,
        names=[x509.DNSName("relay.example.com"), x509.DNSName("*.other.example.com")],
        usage=keys.SERVER_AUTH,
        not_before=keys.utc_now(),
        not_after=keys.utc_now() + timedelta(days=1),
    )
    pem = keys.certificate_pem(leaf)
    given = settings(tmp_path, public_address="relay.example.com")
    chain = join_chain(given, pem + middle.pem)
    assert (chain.appended, chain.pin) == (b"", sha256(keys.parse_certificates(middle.pem, "")[0]))
    assert (chain.ca_pem, chain.server_name) == (middle.pem, "relay.example.com")
    assert join_chain(settings(tmp_path, public_address="a.other.example.com"), pem + middle.pem).server_name == (
        "a.other.example.com"
    )
    with pytest.raises(JoiningOff, match="holds no chain"):
        join_chain(given, pem)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"joining": "off"}, "set joining = true"),
        ({"client_auth": "off"}, "client-auth is off"),
        ({"ca_cert": "other.pem"}, "join-signer"),
    ],
    ids=str,
)
def test_where_nothing_issues_nobody_joins(tmp_path: Path, values: dict[str, Any], error: str) -> None:
    made = ensure_development(tmp_path, names=())
    (tmp_path / "other.pem").write_bytes(Ca("other").pem)
    if "ca_cert" in values:
        values = {"ca_cert": str(tmp_path / "other.pem")}
    with pytest.raises(JoiningOff, match=error):
        join_chain(settings(tmp_path, **values), made.certificate_pem)
    if "ca_cert" in values:
        join_chain(settings(tmp_path, **values, join_signer=["sign"]), made.certificate_pem)
        (tmp_path / "other.pem").write_bytes(Ca("other").pem + made.ca_pem)
        join_chain(settings(tmp_path, **values), made.certificate_pem)


def test_the_settings_in_force_are_left_for_other_commands(tmp_path: Path) -> None:
    given = settings(
        tmp_path, public_address="relay.example.com", external_ip="203.0.113.1", port=0, certificate_lifetime="2d"
    )
    relay.note(given, 5000)
    path = tmp_path / relay.FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert relay.noted(tmp_path) == given.model_copy(update={"port": 5000})
    before = path.stat().st_ino
    relay.note(given, 5000)
    assert path.stat().st_ino == before, "the same settings are not written again"
    for text in ("", "{", "[]", '{"port": "x"}', '{"bind": 7}'):
        path.write_text(text)
        assert relay.noted(tmp_path) is None


def test_those_of_a_server_of_another_version_are_read_as_far_as_they_are_known(tmp_path: Path) -> None:
    given = settings(tmp_path, public_address="relay.example.com")
    relay.note(given, 4433)
    path = tmp_path / relay.FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_another_version": 1}))
    assert relay.noted(tmp_path) == given


def test_relative_paths_are_left_as_they_are_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("state").mkdir()
    relay.note(settings(Path("state"), cert="a.pem", key="a.key"), 4433)
    found = relay.noted(tmp_path / "state")
    assert found is not None
    assert found.cert == tmp_path / "a.pem"
