"""The settings of access: what excludes what, what check-config finds, and which lists may replace which."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.settings import load

from intermediate_server.access.admission import NOTHING_REVOKED, Admission
from intermediate_server.access.loading import access_warnings, files_of, load_admission
from intermediate_server.cli import main
from intermediate_server.config import Settings
from intermediate_server.errors import CertificateError, ConfigError
from intermediate_server.pki import denied, development, keys
from intermediate_server.pki.authority import Authority
from intermediate_server.policy import CertificatePolicy, RulesPolicy, make_policy
from intermediate_server.server.reload import differences
from intermediate_server.server.reload import load as load_all
from intermediate_server.types import Role

RULE = '[[rules]]\nname = "one"\npeers = "anyone"\nagent = ["web"]\n'


def written(directory: Path, text: str) -> Path:
    path = directory / "config.toml"
    path.write_text(text)
    return path


def settings(directory: Path, text: str, **flags: object) -> Settings:
    return load({"config": str(written(directory, text)), **flags}, env={"HOME": str(directory)})


def test_the_policy_follows_from_the_settings(tmp_path: Path) -> None:
    assert type(make_policy(settings(tmp_path, ""))) is CertificatePolicy
    by_rules = make_policy(settings(tmp_path, RULE))
    assert isinstance(by_rules, RulesPolicy)
    assert [rule.name for rule in by_rules.rules.rules] == ["one"]
    nobody = make_policy(settings(tmp_path, "rules = []"))
    assert isinstance(nobody, RulesPolicy)
    assert nobody.rules.rules == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('policy = "a:b"\n' + RULE, "rules and policy are both set"),
        ("allow-unnamed-certs = true\n" + RULE, "allow-unnamed-certs is set beside rules"),
        ('allow-unnamed-certs = true\npolicy = "a:b"\n', "allow-unnamed-certs is set beside policy"),
        ("rules = 7", "can only be written as tables"),
        ("[rules]\nname = 'one'", "can only be written as tables"),
        ("rule = []", "did you mean rules?"),
        ("denylist = 'x'", "did you mean deny-list?"),
    ],
)
def test_what_cannot_be_meant_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        settings(tmp_path, text)


def test_rules_are_no_matter_of_flags_and_variables(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ZTNA_RULES: can only be written as tables"):
        load({"config": str(written(tmp_path, ""))}, env={"ZTNA_RULES": "[]", "HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RULE + "agents = []", "rules[1]: unknown key 'agents'; did you mean 'agent'?"),
        (RULE + RULE, "taken by an earlier rule"),
        (RULE + "limits = { bytes-per-month = 1 }", "counted for certified peers only"),
        ('policy = "nowhere_at_all:Policy"', "there is no module 'nowhere_at_all'"),
        ('deny-list = "/nonexistent"', "deny list not found"),
        ('crl = "/nonexistent"', "revocation list not found"),
    ],
)
def test_check_config_finds_what_a_start_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    assert main(["check-config", "--state-dir", str(tmp_path / "state"), str(written(tmp_path, text))]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "state").exists(), "nothing is made"


def test_check_config_looks_at_the_list_of_the_development_ca(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority(tmp_path / "state")
    authority.init()
    arguments = ["check-config", "--state-dir", str(tmp_path / "state"), str(written(tmp_path, RULE))]
    assert main(arguments) == 0
    assert main([*arguments, "--show"]) == 0
    assert "# 1 [[rules]]" in capsys.readouterr().out
    authority.crl_path.write_bytes(b"no list")
    assert main(arguments) == 2
    assert "is not a CRL" in capsys.readouterr().err


def test_check_config_finds_a_certificate_that_tls_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = ec.generate_private_key(ec.SECP256K1())
    now = keys.utc_now()
    certificate = keys.sign_itself("curve of another world", key, not_before=now, not_after=now + timedelta(days=1))
    pair = tmp_path / "server.pem", tmp_path / "server.key"
    pair[0].write_bytes(keys.certificate_pem(certificate))
    pair[1].touch(mode=0o600)
    pair[1].write_bytes(keys.key_pem(key))
    arguments = ["check-config", "--state-dir", str(tmp_path / "state"), str(written(tmp_path, ""))]
    assert main(arguments) == 0
    assert main([*arguments, "--cert", str(pair[0]), "--key", str(pair[1])]) == 2
    assert str(pair[0]) in capsys.readouterr().err
    assert not (tmp_path / "state").exists(), "nothing is made"


def test_check_config_looks_at_the_development_ca(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = development.ensure_development(tmp_path / "state", names=())
    arguments = ["check-config", "--state-dir", str(tmp_path / "state"), str(written(tmp_path, ""))]
    assert main(arguments) == 0
    made.ca_cert.with_name("ca.key").unlink()
    assert main(arguments) == 2
    assert "private key file not found" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["no directory", "directory", "closed"])
def test_check_config_tries_the_audit_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "audit"
    arguments = ["check-config", "--state-dir", str(tmp_path / "state"), str(written(tmp_path, "")), "--audit-log"]
    assert main([*arguments, str(path)]) == 0
    assert main([*arguments, "-"]) == 0
    assert main([*arguments, str(tmp_path / "state" / "audit")]) == 0, "a start makes the directory"
    assert not path.exists(), "nothing is made"
    match kind:
        case "no directory":
            path = tmp_path / "missing" / "audit"
        case "directory":
            path.mkdir()
        case _:
            # Tests may run as root, to whom no directory is closed.
            monkeypatch.setattr(os, "access", lambda *_: False)
    assert main([*arguments, str(path)]) == 2
    assert f"audit log {path} cannot be opened" in capsys.readouterr().err


def test_warnings_say_who_gets_in_without_proof(tmp_path: Path) -> None:
    def warnings(text: str) -> str:
        given = settings(tmp_path, text)
        return " ".join(access_warnings(given, make_policy(given)))

    assert warnings("") == ""
    assert "may register any service" in warnings('client-auth = "optional"')
    assert "what the rules grant" in warnings('client-auth = "off"\n' + RULE)
    assert warnings('client-auth = "optional"\n' + RULE.replace("anyone", "certified")) == ""
    assert warnings(RULE) == ""
    assert "allow-unnamed-certs" in warnings("allow-unnamed-certs = true")


def test_differences_are_told_apart(tmp_path: Path) -> None:
    old = settings(tmp_path, "port = 1\n" + RULE)
    new = settings(tmp_path, 'port = 2\ncrl = "x"\n' + RULE.replace("web", "db"))
    assert differences(old, new) == (("crl", "rules"), ("port",))
    assert differences(old, settings(tmp_path, "port = 1\n" + RULE)) == ((), ())


class Lists:
    """A development CA whose list is written by hand."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        development.ensure_development(directory, names=())
        self.settings = load({"state_dir": str(directory)}, env={}, files=())
        self.path = directory / "crl.pem"

    def write(self, due: timedelta, *serials: int) -> None:
        now = datetime.now(UTC)
        certificate, key = development.load_authority(self.directory, now=now)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(certificate.subject)
            .last_update(now - timedelta(days=2))
            .next_update(now + due)
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        self.path.write_bytes(builder.sign(key, keys.SHA256).public_bytes(Encoding.PEM))

    def load(self, current: Admission | None = None) -> Admission:
        return load_admission(self.settings, (self.directory / "ca.pem").read_bytes(), current=current)


@pytest.fixture
def lists(tmp_path: Path) -> Lists:
    return Lists(tmp_path)


def test_a_list_that_appears_counts_and_may_not_go_again(lists: Lists) -> None:
    first = lists.load()
    assert first.revocations.serials == frozenset()
    lists.write(timedelta(days=1), 5)
    second = lists.load(first)
    assert {serial for _, serial in second.revocations.serials} == {5}
    lists.path.unlink()
    with pytest.raises(ConfigError, match="has gone"):
        lists.load(second)


def test_an_overdue_list_does_not_replace_a_good_one(lists: Lists) -> None:
    lists.write(timedelta(days=1), 5)
    good = lists.load()
    lists.write(-timedelta(days=1), 6)
    with pytest.raises(ConfigError, match="the one in force is newer"):
        lists.load(good)
    overdue = lists.load()
    assert overdue.revocations.overdue(datetime.now(UTC))
    assert {serial for _, serial in overdue.revocations.serials} == {6}, "it goes on revoking"
    assert lists.load(overdue) == overdue


def test_a_list_that_cannot_be_read_is_an_error(lists: Lists) -> None:
    lists.path.write_bytes(b"-----BEGIN X509 CRL-----\n")
    with pytest.raises(CertificateError):
        lists.load()


def test_without_client_certificates_there_is_no_list(lists: Lists) -> None:
    lists.path.write_bytes(b"anything")
    lists.settings = lists.settings.model_copy(update={"client_auth": "off"})
    assert lists.load().revocations.serials == frozenset()


class Bundle:
    """A server whose ``ca-cert`` names the development CA of its own state directory, beside or instead of another."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory / "state")
        self.authority.init()
        self.other = Authority(directory / "other")
        self.other.init()
        self.path = directory / "bundle.pem"
        flags = {"state_dir": str(directory / "state"), "ca_cert": str(self.path)}
        self.settings = load(flags, env={}, files=())

    def admission(self, *authorities: Authority, **settings: object) -> Admission:
        self.path.write_bytes(b"".join(item.certificate_path.read_bytes() for item in authorities))
        return load_admission(self.settings.model_copy(update=settings), self.path.read_bytes())

    def revoke(self, authority: Authority) -> int:
        serial = authority.issue(Role.AGENT, "ann", services=["web"]).serial
        authority.revoke("ann")
        return int(serial, 16)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(tmp_path)


def serials(admission: Admission) -> set[int]:
    return {serial for _, serial in admission.revocations.serials}


def test_revoking_counts_where_the_development_ca_is_named(bundle: Bundle) -> None:
    mine, theirs = bundle.revoke(bundle.authority), bundle.revoke(bundle.other)
    assert serials(bundle.admission(bundle.authority)) == {mine}
    assert serials(bundle.admission(bundle.other, bundle.authority)) == {mine}
    assert serials(bundle.admission(bundle.other, bundle.authority, crl=bundle.other.crl_path)) == {mine, theirs}
    assert serials(bundle.admission(bundle.authority, crl=bundle.authority.crl_path)) == {mine}
    assert serials(bundle.admission(bundle.other)) == set(), "its list is no matter of another CA"
    assert bundle.authority.crl_path in files_of(bundle.settings, None)


@pytest.mark.parametrize("named", [False, True])
def test_a_start_misses_the_list_of_what_was_revoked(bundle: Bundle, named: bool) -> None:
    if not named:
        bundle.settings = bundle.settings.model_copy(update={"ca_cert": None})
    bundle.authority.crl_path.unlink()
    assert serials(bundle.admission(bundle.authority)) == set(), "nothing was revoked yet"
    serial = bundle.revoke(bundle.authority)
    bundle.authority.crl_path.unlink()
    with pytest.raises(ConfigError, match="pki init"):
        bundle.admission(bundle.authority)
    bundle.authority.init()
    assert serials(bundle.admission(bundle.authority)) == {serial}


def move_away(authority: Authority, *names: str) -> bytes:
    """What the texts of errors advise for another CA; returns the certificate of the one before."""
    old = authority.certificate_path.read_bytes()
    for name in names:
        authority.certificate_path.with_name(name).unlink()
    return old


@pytest.mark.parametrize("names", [("ca.pem", "ca.key"), ("ca.pem",), ("ca.pem", "ca.key", "crl.pem")])
@pytest.mark.parametrize("named", [False, True])
def test_a_ca_takes_the_place_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], named: bool
) -> None:
    authority = Authority(tmp_path / "state")
    authority.init()
    authority.issue(Role.AGENT, "ann", services=["web"])
    authority.revoke("ann")
    move_away(authority, *names)
    text = f'crl = "{authority.crl_path}"\n' if named and "crl.pem" not in names else ""
    arguments = ["check-config", "--state-dir", str(tmp_path / "state"), str(written(tmp_path, text))]
    assert main(arguments) == 0, "before there is a new one"
    flags = {"state_dir": str(tmp_path / "state"), "config": str(written(tmp_path, text))}
    loaded = load_all(load(flags, env={}))
    assert {issuer for issuer, _ in loaded.admission.revocations.serials} == {
        keys.load_certificates(authority.certificate_path)[0].subject.public_bytes()
    }
    assert main(arguments) == 0
    again = authority.issue(Role.AGENT, "ann", services=["web"])
    authority.revoke("ann")
    after = load_all(load(flags, env={}), admission=loaded.admission)
    assert int(again.serial, 16) in serials(after.admission)
    capsys.readouterr()


def test_what_an_earlier_ca_revoked_stays_so_where_it_is_trusted(bundle: Bundle) -> None:
    serial = bundle.revoke(bundle.authority)
    old = move_away(bundle.authority, "ca.pem", "ca.key")
    bundle.authority.init()
    pem = bundle.authority.certificate_path.read_bytes() + old
    subjects = {item.subject.public_bytes() for item in keys.parse_certificates(pem, "")}
    assert load_admission(bundle.settings, pem).revocations.serials == {(subject, serial) for subject in subjects}


def test_the_list_of_another_ca_is_no_list(bundle: Bundle) -> None:
    good = bundle.admission(bundle.authority)
    assert good.lists == (bundle.authority.crl_path,)
    strange = bundle.other.crl_path.read_bytes()
    bundle.authority.crl_path.write_bytes(strange)
    assert bundle.admission(bundle.authority).revocations == NOTHING_REVOKED, "nothing was revoked yet"
    bundle.authority.init()
    bundle.revoke(bundle.authority)
    good = bundle.admission(bundle.authority)
    bundle.authority.crl_path.write_bytes(strange)
    with pytest.raises(ConfigError, match=r"is not of the CA beside it.*pki init"):
        bundle.admission(bundle.authority)
    (bundle.authority.crl_path.parent / "identity.db").unlink()
    with pytest.raises(ConfigError, match="is not of the CA beside it"):
        load_admission(bundle.settings, bundle.path.read_bytes(), current=good)


def test_what_has_expired_is_not_missed(bundle: Bundle) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=10)
    bundle.authority.issue(Role.AGENT, "ann", services=["web"], days=1, now=long_ago)
    bundle.authority.revoke("ann", now=long_ago)
    bundle.authority.crl_path.unlink()
    bundle.admission(bundle.authority)


def test_what_revoke_denies_counts_beside_the_deny_list(bundle: Bundle) -> None:
    """Also where the CA is somebody else's and the state directory holds none."""
    own = bundle.settings.state_dir / "denied.txt"
    assert own in files_of(bundle.settings, None), "before it exists"
    given = bundle.path.with_name("deny-list")
    given.write_text("ab" * 32)
    assert bundle.admission(bundle.other, deny_list=given).revocations.fingerprints == {"ab" * 32}
    fingerprint = denied.deny(bundle.settings.state_dir, "SHA256 Fingerprint=" + ":".join(["CD"] * 32))
    good = bundle.admission(bundle.other, deny_list=given)
    assert good.revocations.fingerprints == {"ab" * 32, fingerprint}
    assert bundle.admission(bundle.other).revocations.fingerprints == {fingerprint}
    own.unlink()
    with pytest.raises(ConfigError, match=r"denied\.txt has gone"):
        load_admission(bundle.settings, bundle.path.read_bytes(), current=good)
    with pytest.raises(CertificateError, match="pki show"):
        denied.deny(bundle.settings.state_dir, "laptop")
