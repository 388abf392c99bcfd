"""``policy explain`` and ``policy test`` as people run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from intermediate_server.cli import main
from intermediate_server.pki import development, keys
from intermediate_server.pki.authority import Authority
from intermediate_server.types import Role

RULES = """
[[rules]]
name = "office only"
dns = ["agent.*.ztna"]
network = ["198.51.100.0/24"]
agent = ["web"]
limits = { connections = 4, bytes-per-second = 1000 }

[[rules]]
name = "summer"
dns = ["agent.*.ztna"]
agent = ["db-*"]
not-before = 2026-06-01T00:00:00Z
not-after = 2026-09-01T00:00:00Z

[[rules]]
name = "no guests"
effect = "deny"
peers = "anonymous"
agent = ["*"]
"""

CUSTOM = """
from intermediate_server.policy import Allow, Deny, Policy

class Custom(Policy):
    async def authorize(self, registration):
        if registration.service == "web":
            return Allow("custom web")
        return Deny("only web", "custom")
"""


class Site:
    """A state directory with a CA and a certificate, and a configuration file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.authority = Authority(self.state)
        self.authority.init()
        self.cert = self.issue("ann", Role.AGENT, "web", "db-1")

    def issue(self, name: str, role: Role, *services: str) -> Path:
        return self.authority.certificate_file(self.authority.issue(role, name, services=services).name)

    def write(self, text: str, name: str = "config.toml") -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    def run(self, *arguments: str, expected: int = 0) -> str:
        """The output of ``policy`` with these arguments."""
        result = subprocess.run(
            [sys.executable, "-m", "intermediate_server", "policy", *arguments, "--state-dir", str(self.state)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{self.directory}", "COLUMNS": "120"},
        )
        assert result.returncode == expected, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        return result.stdout + result.stderr

    def explain(self, *arguments: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.run("explain", "--json", *arguments))
        return answer


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_explain_rules_for_people(site: Site) -> None:
    config = str(site.write(RULES))
    out = site.run(
        "explain", "--cert", str(site.cert), "--agent", "web", "--source", "198.51.100.7", "--config", config
    )
    assert "agent of service 'web'" in out
    assert "agent.web.ztna" in out
    assert "decided by  3 rules" in out
    assert "office only: matches" in out
    assert "ALLOWED by rule 'office only'" in out
    assert "connections: 4" in out
    out = site.run("explain", "--cert", str(site.cert), "--agent", "web", "--config", config)
    assert "192.0.2.1 (an example" in out
    assert "office only: the source address is in none of its networks" in out
    assert "DENIED by rule 'default': no rule matches" in out


def test_explain_rules_at_another_time(site: Site) -> None:
    arguments = ["--cert", str(site.cert), "--agent", "db-1", "--config", str(site.write(RULES))]
    now = keys.utc_now()
    # The certificate itself must be good then: a case of its own below.
    rules = RULES.replace("2026-06-01", f"{now + timedelta(days=30):%Y-%m-%d}")
    rules = rules.replace("2026-09-01", f"{now + timedelta(days=90):%Y-%m-%d}")
    site.write(rules)
    assert site.explain(*arguments)["steps"][1]["mismatch"] == "it is not in force yet"
    summer = site.explain(*arguments, "--at", (now + timedelta(days=60)).isoformat())
    assert (summer["allowed"], summer["rule"]) == (True, "summer")
    assert summer["valid_until"] == f"{now + timedelta(days=90):%Y-%m-%d}T00:00:00+00:00"
    later = site.explain(*arguments, "--at", (now + timedelta(days=120)).isoformat())
    assert later["steps"][1] == {"rule": "summer", "mismatch": "it is no longer in force"}


def test_explain_what_is_refused_before_any_policy(site: Site, tmp_path: Path) -> None:
    arguments = ["--agent", "web", "--config", str(site.write(RULES)), "--source", "198.51.100.7"]

    def refusal(cert: Path | None, *more: str) -> tuple[str, str]:
        given = [] if cert is None else ["--cert", str(cert)]
        answer = site.explain(*given, *arguments, *more)
        assert answer["allowed"] is False
        assert answer["steps"] == []
        return answer["rule"], answer["reason"]

    assert refusal(None) == ("anonymous", "a client certificate is required")
    now = keys.utc_now()
    assert refusal(site.cert, "--at", (now + timedelta(days=400)).isoformat())[0] == "expired"
    assert "not valid before" in refusal(site.cert, "--at", (now - timedelta(days=9)).isoformat())[1]
    other = Authority(tmp_path / "other")
    other.init()
    foreign = other.certificate_file(other.issue(Role.AGENT, "eve", services=["web"]).name)
    assert "does not chain to" in refusal(foreign)[1]
    assert site.explain("--cert", str(site.cert), *arguments)["allowed"] is True
    site.authority.revoke("ann")
    assert refusal(site.cert)[0] == "revoked"


def test_explain_looks_at_certificates_as_tls_does(site: Site) -> None:
    now, root = keys.utc_now(), development.load_authority(site.state, now=keys.utc_now())

    def signed(
        name: str, above: tuple[x509.Certificate, keys.PrivateKey], *, is_ca: bool, usage: Any, days: int
    ) -> Any:
        key = keys.new_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(keys.common_name(name))
            .issuer_name(above[0].subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=9))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("agent.web.ztna")]), critical=False)
        )
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        return builder.sign(above[1], keys.SHA256), key

    def explained(leaf_usage: Any = None, **below: Any) -> dict[str, Any]:
        middle = signed("middle", root, **{"is_ca": True, "usage": None, "days": 1, **below})
        leaf = signed("leaf", middle, is_ca=False, usage=leaf_usage, days=1)
        file = site.directory / "chain.pem"
        file.write_bytes(keys.certificate_pem(leaf[0]) + keys.certificate_pem(middle[0]))
        return site.explain("--cert", str(file), "--agent", "web")

    assert explained()["allowed"] is True
    assert explained(keys.CLIENT_AUTH)["allowed"] is True
    assert "certificate is not for clients" in explained(keys.SERVER_AUTH)["reason"]
    assert "intermediate certificate CN=middle is not for clients" in explained(usage=keys.SERVER_AUTH)["reason"]
    assert "intermediate certificate CN=middle is valid from" in explained(days=-1)["reason"]
    assert "does not chain to" in explained(is_ca=False)["reason"]


def test_explain_certificate_names(site: Site) -> None:
    answer = site.explain("--cert", str(site.cert), "--agent", "DB-1")
    assert answer["allowed"] is True
    assert answer["decided_by"] == "names in client certificates"
    assert answer["steps"] == [
        {"rule": "name agent.web.ztna", "mismatch": "it is for another service"},
        {"rule": "name agent.db-1.ztna", "mismatch": None},
    ]
    answer = site.explain("--cert", str(site.cert), "--connector", "web")
    assert answer["allowed"] is False
    assert {step["mismatch"] for step in answer["steps"]} == {"it is for the agent role"}


def test_explain_anonymous_peers(site: Site) -> None:
    config = str(site.write(f'client-auth = "optional"\n{RULES}'))
    assert site.explain("--agent", "web", "--config", config)["rule"] == "no guests"
    config = str(site.write('client-auth = "off"\n'))
    answer = site.explain("--cert", str(site.cert), "--agent", "x", "--config", config)
    assert (answer["allowed"], answer["rule"]) == (True, "anonymous")
    assert "never sees the certificate" in answer["notes"][0]


def test_explain_a_python_policy(site: Site) -> None:
    site.write(CUSTOM, "custom_policy_of_the_test.py")
    config = str(site.write('policy = "custom_policy_of_the_test:Custom"\n'))
    arguments = ["--cert", str(site.cert), "--config", config]
    assert site.explain("--agent", "web", *arguments)["rule"] == "custom web"
    answer = site.explain("--agent", "db", *arguments)
    assert (answer["allowed"], answer["rule"], answer["reason"]) == (False, "custom", "only web")
    out = site.run("explain", "--agent", "web", "--at", "2026-01-01T00:00:00Z", *arguments[2:], expected=0)
    assert "a client certificate is required" in out, "nothing is asked that is refused before"
    at = (keys.utc_now() + timedelta(days=1)).isoformat()
    assert "a clock of its own" in site.run("explain", "--agent", "web", "--at", at, *arguments, expected=2)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "--agent, --connector"),
        (["--agent", "a", "--connector", "b"], "--agent, --connector"),
        (["--agent", "a", "--source", "here"], "--source must be an IP address"),
        (["--agent", "a", "--at", "noon"], "--at must be a time"),
        (["--agent", "a", "--at", "2026-01-01T00:00:00"], "--at must be a time"),
        (["--agent", "a", "--at", "0001-01-01T00:00:00+10:00"], "--at must be a time"),
        (["--agent", "a", "--cert", "missing.pem"], "not found: missing.pem"),
        (["--agent", "a", "--config", "missing.toml"], "missing.toml: not found"),
    ],
)
def test_explain_wrong_arguments(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "explain", *arguments]) == 2
    assert problem in capsys.readouterr().err


def test_explain_does_not_print_what_drives_a_terminal(site: Site) -> None:
    assert "\x1b" not in site.run("explain", "--agent", "a\x1b[31m", "--cert", str(site.cert))


CASES = """
config = "config.toml"

[[cases]]
name = "from the office"
cert = "state/issued/ann.pem"
agent = "web"
source = "198.51.100.7"
expect = "allow"
rule = "office only"

[[cases]]
name = "from elsewhere"
dns = ["AGENT.web.ztna."]
agent = "web"
source = "203.0.113.7"
expect = "deny"
rule = "default"

[[cases]]
name = "in July"
dns = ["agent.x.ztna"]
spiffe = ["spiffe://example.org/x"]
agent = "db-7"
at = 2026-07-01T00:00:00Z
expect = "allow"

[[cases]]
dns = ["connector.x.ztna"]
connector = "web"
expect = "deny"
"""


def test_written_cases(site: Site) -> None:
    site.write(RULES)
    cases = site.write(CASES, "cases.toml")
    assert site.run("test", str(cases)) == "4 cases, 0 failed\n"
    wrong = CASES.replace('rule = "default"', 'rule = "office only"').replace("2026-07", "2026-10")
    out = site.run("test", str(site.write(wrong, "cases.toml")), expected=1)
    assert "FAILED from elsewhere: expected rule 'office only', is denied by rule 'default': no rule matches" in out
    assert "FAILED in July: expected to be allowed, is denied by rule 'default'" in out
    assert out.endswith("4 cases, 2 failed\n")
    # Another configuration than the file's.
    other = site.write("", "other.toml")
    out = site.run("test", str(cases), "--config", str(other), expected=1)
    assert "FAILED from elsewhere: expected to be denied, is allowed by rule 'certificate name agent.web.ztna'" in out


def test_written_cases_with_revocation(site: Site) -> None:
    site.write(RULES)
    cases = site.write(CASES, "cases.toml")
    site.authority.revoke("ann")
    out = site.run("test", str(cases), expected=1)
    assert "FAILED from the office: expected to be allowed, is denied by rule 'revoked'" in out


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "cannot be read"),
        ("[[cases", "not valid TOML"),
        ("", "no [[cases]]"),
        ("cases = 1", "no [[cases]]"),
        ("case = 1", "did you mean 'cases'"),
        ('[[cases]]\nagent = "a"\nexpect = "allow"', "say who"),
        ('[[cases]]\nanonymous = true\nexpect = "allow"', "under agent or under connector"),
        ('[[cases]]\nanonymous = true\nagent = "a"\nconnector = "b"\nexpect = "allow"', "one of them"),
        ('[[cases]]\nanonymous = false\nagent = "a"\nexpect = "allow"', "can only be true"),
        ('[[cases]]\nanonymous = true\ndns = ["x"]\nagent = "a"\nexpect = "allow"', "exclude each other"),
        ('[[cases]]\ncert = "x"\ndns = ["x"]\nagent = "a"\nexpect = "allow"', "exclude each other"),
        ('[[cases]]\ncert = "x"\nagent = "a"\nexpect = "allow"', "not found"),
        ('[[cases]]\nanonymous = true\nagent = "a"', 'must be "allow" or "deny"'),
        ('[[cases]]\nanonymous = true\nagent = "a"\nexpect = "allow"\nroule = "x"', "did you mean 'rule'"),
        ('[[cases]]\nanonymous = true\nagent = "a"\nexpect = "allow"\nsource = "x"', "source must be an IP"),
        ('[[cases]]\nanonymous = true\nagent = "a"\nexpect = "allow"\nat = 2026-01-01', "at must be a date and time"),
        ('[[cases]]\nfingerprint = "ab"\nagent = "a"\nexpect = "allow"', "64 hex digits"),
    ],
)
def test_a_bad_file_of_cases(
    tmp_path: Path, text: str | None, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cases.toml"
    if text is not None:
        path.write_text(text)
    assert main(["policy", "test", str(path)]) == 2
    assert problem in capsys.readouterr().err
