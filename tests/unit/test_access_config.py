"""The settings of access: what excludes what, what check-config finds, and which lists may replace which."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from intermediate_server.cli import main
from intermediate_server.config import Settings, load
from intermediate_server.errors import CertificateError, ConfigError
from intermediate_server.pki import development, keys
from intermediate_server.pki.authority import Authority
from intermediate_server.policy import CertificatePolicy, RulesPolicy, make_policy
from intermediate_server.server.access import Gate, access_warnings, load_gate
from intermediate_server.server.reload import differences

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

    def load(self, current: Gate | None = None) -> Gate:
        return load_gate(self.settings, (self.directory / "ca.pem").read_bytes(), current=current)


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
