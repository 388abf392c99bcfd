"""Joining without a network: ``pki sign``, and profiles that ``pki issue`` writes."""

from __future__ import annotations

import io
import stat
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.cli import main
from intermediate_server.client.profile import Profile
from intermediate_server.client.profile_text import LockedProfile
from intermediate_server.join.messages import Issued, parse_answer
from intermediate_server.pki import Authority, keys
from intermediate_server.types import Role


class Host:
    """Runs commands: those of the relay on ``state``, those of the device on ``home``."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.tmp_path, self._capsys, self._monkeypatch = tmp_path, capsys, monkeypatch
        self.errors = ""

    def run(self, *arguments: str, code: int = 0, stdin: str = "", where: str = "state") -> str:
        self._monkeypatch.setenv("STATE_DIRECTORY", str(self.tmp_path / where))
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        assert main(arguments) == code, self._capsys.readouterr()
        out, self.errors = self._capsys.readouterr()
        return out

    def write(self, name: str, text: str) -> str:
        (self.tmp_path / name).write_text(text)
        return str(self.tmp_path / name)


@pytest.fixture
def host(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("ZTNA_PUBLIC_ADDRESS", "relay.example.com:5000")
    monkeypatch.chdir(tmp_path)
    return Host(tmp_path, capsys, monkeypatch)


def request(key: keys.PrivateKey, name: str = "office") -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(keys.common_name(name))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("agent.db.ztna")]), critical=False)
    return builder.sign(key, keys.signing_hash(key)).public_bytes(Encoding.PEM).decode()


def test_a_request_becomes_a_profile(host: Host, tmp_path: Path) -> None:
    csr = host.write("office.csr", host.run("join", "--offline", where="device"))
    made = host.run("pki", "sign", csr, "--role", "connector", "--service", "web", "--name", "office")
    bundle = host.write("office.bundle", made)
    assert 'joined as connector "office" for web' in host.run("join", "--complete", bundle, where="device")
    profile = Profile.load(tmp_path / "device" / "connector.ztna")
    assert (profile.role, profile.services, profile.name) == (Role.CONNECTOR, ("web",), "office")
    assert profile.servers == ("relay.example.com:5000",)
    assert profile.ca_pem == (tmp_path / "state" / "ca.pem").read_bytes()
    [entry] = Authority(tmp_path / "state").entries()
    assert entry.fingerprint == profile.leaf.fingerprint(keys.SHA256).hex()


def test_the_requests_own_names_grant_nothing(host: Host, tmp_path: Path) -> None:
    made = host.run(
        "pki", "sign", "-", "--role", "agent", "-s", "web", "--dns", "a.example", stdin=request(keys.new_key())
    )
    issued = parse_answer(made.strip().encode())
    assert isinstance(issued, Issued)
    [leaf] = keys.parse_certificates(issued.chain.encode(), "")
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["agent.web.ztna", "a.example"]
    assert issued.name == "office"


def test_the_same_request_gets_the_same_certificate_and_another_key_does_not(host: Host) -> None:
    key = keys.new_key()
    first = parse_answer(host.run("pki", "sign", "-", "--role", "agent", "-s", "web", stdin=request(key)).encode())
    again = parse_answer(host.run("pki", "sign", "-", "--role", "agent", "-s", "web", stdin=request(key)).encode())
    assert isinstance(first, Issued)
    assert isinstance(again, Issued)
    assert first.chain == again.chain
    host.run("pki", "sign", "-", "--role", "agent", "-s", "db", stdin=request(key), code=2)
    assert "'office' is taken; give another with --name" in host.errors
    host.run("pki", "sign", "-", "--role", "agent", "-s", "web", stdin=request(keys.new_key()), code=2)
    assert "intermediate-server revoke office" in host.errors


def test_what_is_no_good_request_is_refused(host: Host) -> None:
    weak = rsa.generate_private_key(65537, 1024)
    for text, error in (
        ("", "cannot be read"),
        ("x" * 70_000, "cannot be read"),
        (request(weak), "gets no certificate"),
    ):
        host.run("pki", "sign", "-", "--role", "agent", "-s", "web", stdin=text, code=2)
        assert error in host.errors
    host.run("pki", "sign", "none.csr", "--role", "agent", "-s", "web", code=2)
    assert "signing request not found" in host.errors
    host.run("pki", "sign", "-", "--role", "server", "-s", "web", stdin=request(keys.new_key()), code=2)
    assert "is not one of agent, connector" in host.errors


def test_a_profile_in_one_step(host: Host, tmp_path: Path) -> None:
    out = host.run("pki", "issue", "agent", "laptop", "--service", "web", "--profile", "laptop.ztna", "--days", "10")
    assert "its key is nowhere else" in out
    path = tmp_path / "laptop.ztna"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    profile = Profile.load(path)
    assert (profile.name, profile.role, profile.servers) == ("laptop", Role.AGENT, ("relay.example.com:5000",))
    assert not (tmp_path / "state" / "issued" / "laptop.key").exists()
    host.run("pki", "issue", "agent", "other", "--service", "web", "--profile", "laptop.ztna", code=2)
    assert "exists; name a new file" in host.errors
    assert [entry.name for entry in Authority(tmp_path / "state").entries()] == ["laptop"]
    assert 'joined as agent "laptop"' in host.run("join", "--complete", "laptop.ztna", where="device")
    assert Profile.load(tmp_path / "device" / "agent.ztna") == profile


def test_a_profile_with_a_passphrase(host: Host, tmp_path: Path) -> None:
    arguments = ("pki", "issue", "connector", "office", "--service", "web")
    host.run(*arguments, "--passphrase", code=2)
    assert "give --profile FILE too" in host.errors
    host.run(*arguments, "--profile", "office.ztna", "--passphrase", code=2)
    assert "no passphrase" in host.errors
    out = host.run(*arguments, "--profile", "office.ztna", "--passphrase", stdin="secret words\n")
    text = (tmp_path / "office.ztna").read_text()
    assert "BEGIN ENCRYPTED PRIVATE KEY" in text
    assert "secret words" not in out + host.errors + text
    with pytest.raises(LockedProfile, match="join --complete FILE"):
        Profile.load(tmp_path / "office.ztna")
    host.run("join", "--complete", "office.ztna", stdin="other words\n", code=2, where="device")
    assert "passphrase is another one" in host.errors
    assert not (tmp_path / "device" / "connector.ztna").exists()
    assert 'joined as connector "office"' in host.run(
        "join", "--complete", "office.ztna", stdin="secret words\n", where="device"
    )
    profile = Profile.load(tmp_path / "device" / "connector.ztna")
    keys.check_pair(profile.leaf, keys.parse_key(profile.key_pem, ""), "")
    assert "ENCRYPTED" not in (tmp_path / "device" / "connector.ztna").read_text()
