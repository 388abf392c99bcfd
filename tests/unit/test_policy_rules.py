"""Patterns, rules and their file form."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.registering import identity, peer

from intermediate_server.errors import ConfigError
from intermediate_server.policy import Allow, Deny, Limits
from intermediate_server.policy.patterns import glob, match_dns, match_spiffe
from intermediate_server.policy.rules import Rules
from intermediate_server.policy.rules_file import parse_rules
from intermediate_server.types import Registration, Role

NOW = datetime(2026, 6, 1, tzinfo=UTC)
FINGERPRINT = "0123456789abcdef" * 4


def wanted(
    service: str = "web",
    *,
    role: Role = Role.AGENT,
    dns: tuple[str, ...] = (),
    uris: tuple[str, ...] = (),
    anonymous: bool = False,
    host: str = "198.51.100.1",
) -> Registration:
    who = replace(identity(*dns, uris=uris), fingerprint=FINGERPRINT)
    return Registration(replace(peer(host=host), identity=None if anonymous else who), role, service)


def rules(text: str) -> Rules:
    return parse_rules(tomllib.loads(text).get("rules", []))


def rule(text: str) -> Rules:
    return rules(f"[[rules]]\nname = 'one'\n{text}")


def allowed(table: Rules, registration: Registration, now: datetime = NOW) -> bool:
    verdict = table.explain(registration, now)
    short = table.decide(registration, now)
    assert (short.decision, short.rule) == (verdict.decision, verdict.rule)
    return isinstance(verdict.decision, Allow)


class TestPatterns:
    @pytest.mark.parametrize(
        ("pattern", "text", "matches"),
        [
            ("", "", True),
            ("", "a", False),
            ("*", "", True),
            ("*", "a.b", True),
            ("a*", "a", True),
            ("a*c", "abcbc", True),
            ("a*c", "abcb", False),
            ("*b*", "abc", True),
            ("**", "x", True),
            ("a?c", "abc", False),
            ("[ab]", "a", False),
            ("*ab*ab", "abab", True),
            ("*ab*ab", "aba", False),
        ],
    )
    def test_glob(self, pattern: str, text: str, matches: bool) -> None:
        assert glob(pattern, text) is matches

    def test_many_stars_do_not_take_longer_than_the_lengths(self) -> None:
        steps = 0

        class Counted(str):
            __slots__ = ()

            def __getitem__(self, index: object) -> str:
                nonlocal steps
                steps += 1
                return super().__getitem__(index)  # type: ignore[index]

        pattern = "a*" * 30 + "b"
        assert not glob(pattern, Counted("a" * 255))
        assert 0 < steps <= 255 * len(pattern) * 2

    @pytest.mark.parametrize(
        ("pattern", "name", "matches"),
        [
            ("host.example.com", "host.example.com", True),
            ("HOST.Example.com", "host.example.com", True),
            ("*.example.com", "host.example.com", True),
            ("*.example.com", "a.b.example.com", False),
            ("*.example.com", "example.com", False),
            ("*.example.com", ".example.com", False),
            ("*.example.com", "host.example.com.evil.org", False),
            ("*.example.com", "hostXexample.com", False),
            ("web-*.example.com", "web-1.example.com", True),
            ("**.example.com", "a.b.example.com", True),
            ("**.example.com", "example.com", False),
            ("**", "anything.at.all", True),
            ("*.example.com", "host\0.example.com", False),
            ("**", "host\n", False),
        ],
    )
    def test_dns_names(self, pattern: str, name: str, matches: bool) -> None:
        assert match_dns(pattern, name) is matches

    @pytest.mark.parametrize(
        ("pattern", "uri", "matches"),
        [
            ("spiffe://example.org/user/ann", "spiffe://example.org/user/ann", True),
            ("spiffe://example.org/user/*", "spiffe://example.org/user/ann", True),
            ("spiffe://example.org/user/*", "spiffe://example.org/user/ann/laptop", False),
            ("spiffe://example.org/user/*", "spiffe://example.org/user", False),
            ("spiffe://example.org/**", "spiffe://example.org/user/ann", True),
            ("spiffe://example.org/**", "spiffe://example.org", False),
            ("spiffe://example.org", "spiffe://example.org", True),
            ("spiffe://example.org/**", "spiffe://example.org.evil.net/user", False),
            ("spiffe://example.org/user/*", "spiffe://example.org/user/Ann", True),
            ("spiffe://example.org/user/ann", "spiffe://example.org/user/Ann", False),
            ("spiffe://example.org/**", "spiffe://Example.org/user", False),
            ("spiffe://example.org/**", "spiffe://example.org/a/../b", False),
            ("spiffe://example.org/**", "spiffe://example.org//b", False),
            ("spiffe://example.org/**", "spiffe://example.org/b/", False),
            ("spiffe://example.org/**", "spiffe://example.org/%61", False),
            ("spiffe://example.org/**", "spiffe://example.org/a\n", False),
            ("spiffe://example.org/**", "spiffe://example.org/a?b", False),
            ("spiffe://example.org/**", "spiffe://example.org:80/a", False),
            ("spiffe://example.org/**", "https://example.org/a", False),
        ],
    )
    def test_spiffe_ids(self, pattern: str, uri: str, matches: bool) -> None:
        assert match_spiffe(pattern, uri) is matches

    def test_services_compare_without_case_and_stars_cross_dots(self) -> None:
        everyone = "peers = 'anyone'\nagent = "
        assert allowed(rule(everyone + "['DB-*']"), wanted("db-prod.eu"))
        assert allowed(rule(everyone + "['db-*']"), wanted("DB-prod.eu"))
        assert allowed(rule(everyone + "['*']"), wanted(""))
        assert not allowed(rule(everyone + "['strasse']"), wanted("straße"))


class TestRules:
    def test_without_rules_nothing_is_allowed(self) -> None:
        verdict = rules("").explain(wanted(), NOW)
        assert verdict.decision == Deny("no rule matches", "default")
        assert verdict.rule is None
        assert verdict.steps == ()

    def test_the_first_match_decides_and_every_step_is_explained(self) -> None:
        table = rules(
            """
            [[rules]]
            name = "visitors"
            peers = "anonymous"
            agent = ["*"]
            [[rules]]
            name = "no secrets"
            effect = "deny"
            peers = "anyone"
            agent = ["secret-*"]
            connector = ["secret-*"]
            [[rules]]
            name = "staff"
            dns = ["*.staff.example.com"]
            agent = ["*"]
            """
        )
        ann = ("ann.staff.example.com",)
        denied = table.explain(wanted("secret-plan", dns=ann), NOW)
        assert denied.decision == Deny("denied by rule 'no secrets'", "no secrets")
        assert [(step.rule, step.mismatch) for step in denied.steps] == [
            ("visitors", "the peer has a certificate"),
            ("no secrets", None),
        ]
        granted = table.explain(wanted("web", dns=ann), NOW)
        assert granted.decision == Allow("staff")
        assert granted.rule is table.rules[2]
        assert [step.mismatch for step in granted.steps] == [
            "the peer has a certificate",
            "it names no such service for the agent role",
            None,
        ]
        assert table.decide(wanted("web", dns=ann), NOW).rule is table.rules[2]
        assert not allowed(table, wanted("web", dns=ann, role=Role.CONNECTOR))
        assert not allowed(table, wanted("web", dns=("eve.example.com",)))

    def test_what_a_rule_states_must_all_be_true(self) -> None:
        table = rule(
            f"""
            dns = ["a.example.com", "b.example.com"]
            spiffe = ["spiffe://example.org/**"]
            fingerprint = ["{FINGERPRINT}"]
            network = ["198.51.100.0/24", "2001:db8::/32"]
            agent = ["web"]
            """
        )
        dns, uris = ("x.example.com", "b.example.com"), ("spiffe://example.org/b",)
        assert allowed(table, wanted(dns=dns, uris=uris))
        assert allowed(table, wanted(dns=dns, uris=uris, host="2001:db8::7"))
        assert not allowed(table, wanted(dns=dns, uris=uris, host="203.0.113.1"))
        assert not allowed(table, wanted(dns=dns))
        assert not allowed(table, wanted(uris=uris))
        assert not allowed(table, wanted(anonymous=True))
        assert not allowed(rule(f"fingerprint = ['{'0' * 64}']\nagent = ['web']"), wanted())

    def test_fingerprints_are_read_in_either_usual_form(self) -> None:
        pairs = ":".join(FINGERPRINT[at : at + 2] for at in range(0, 64, 2)).upper()
        assert allowed(rule(f"fingerprint = ['{pairs}']\nagent = ['web']"), wanted())

    @pytest.mark.parametrize(
        ("peers", "certified", "anonymous"),
        [("certified", True, False), ("anonymous", False, True), ("anyone", True, True)],
    )
    def test_whom_a_rule_is_for(self, peers: str, certified: bool, anonymous: bool) -> None:
        table = rule(f"peers = '{peers}'\nnetwork = ['198.51.100.0/24']\nagent = ['web']")
        assert allowed(table, wanted()) is certified
        assert allowed(table, wanted(anonymous=True)) is anonymous
        assert not allowed(table, wanted(anonymous=True, host="203.0.113.1"))

    def test_several_uris_are_nobody_to_be_allowed_and_anybody_to_be_denied(self) -> None:
        uris = ("spiffe://example.org/a", "spiffe://example.org/b")
        assert not allowed(rule("spiffe = ['spiffe://example.org/**']\nagent = ['*']"), wanted(uris=uris))
        table = rules(
            """
            [[rules]]
            name = "not b"
            effect = "deny"
            spiffe = ["spiffe://example.org/b"]
            agent = ["*"]
            [[rules]]
            name = "rest"
            peers = "certified"
            agent = ["*"]
            """
        )
        assert not allowed(table, wanted(uris=uris))
        assert allowed(table, wanted(uris=uris[:1]))

    def test_the_names_of_the_certificate_may_say_what_is_allowed(self) -> None:
        table = rule("peers = 'certified'\nservices = 'certificate'")
        assert allowed(table, wanted("Web", dns=("agent.web.ztna",)))
        assert not allowed(table, wanted("db", dns=("agent.web.ztna",)))
        assert not allowed(table, wanted(anonymous=True))

    def test_a_rule_is_in_force_within_its_window(self) -> None:
        table = rule(
            "peers = 'anyone'\nagent = ['*']\nnot-before = 2026-06-01T00:00:00Z\nnot-after = 2026-06-02T00:00:00Z"
        )
        moment = timedelta(microseconds=1)
        assert not allowed(table, wanted(), NOW - moment)
        assert allowed(table, wanted(), NOW)
        assert allowed(table, wanted(), NOW + timedelta(days=1) - moment)
        assert not allowed(table, wanted(), NOW + timedelta(days=1))

    def test_limits_come_with_the_rule(self) -> None:
        table = rule("peers = 'anyone'\nagent = ['*']\nlimits = { bytes-per-second = 1_000, connections = 2 }")
        decided = table.decide(wanted(), NOW).rule
        assert decided is not None
        assert decided.limits == Limits(bytes_per_second=1_000, connections=2)


BASE = "peers = 'anyone'\nagent = ['*']\n"


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("agent = ['*']", "say whom it is for"),
            ("network = ['198.51.100.0/24']\nagent = ['*']", "say whom it is for"),
            ("peers = 'anyone'", "name services"),
            ("peers = 'anyone'\nagent = []", "name services"),
            ("peers = 'everyone'\nagent = ['*']", 'must be one of "certified", "anonymous", "anyone"'),
            ("peers = 'anonymous'\ndns = ['a']\nagent = ['*']", "certified peers only"),
            ("peers = 'anonymous'\nservices = 'certificate'", "never hold"),
            (BASE + "services = 'certificate'", "exclude each other"),
            (BASE + "services = 'all'", "can only be"),
            (BASE + "effect = 'maybe'", 'must be one of "allow", "deny"'),
            (BASE + "agents = ['*']", "unknown key 'agents'; did you mean 'agent'?"),
            (BASE + "zzz = 1", "known are name, effect"),
            (BASE + "dns = []", "dns is empty"),
            (BASE + "connector = '*'", "list of texts"),
            (BASE + "connector = [1]", "list of texts"),
            (BASE + "connector = ['']", "empty or unprintable"),
            (BASE + 'connector = ["a\\u0000"]', "empty or unprintable"),
            ("dns = ['a.**.example.com']\nagent = ['*']", "first label"),
            ("spiffe = ['spiffe://example.org/**/a']\nagent = ['*']", "last segment"),
            ("spiffe = ['spiffe://*/a']\nagent = ['*']", "trust domain without stars"),
            ("spiffe = ['https://example.org/a']\nagent = ['*']", "must begin with spiffe://"),
            ("fingerprint = ['abcd']\nagent = ['*']", "64 hex digits"),
            (BASE + "network = ['198.51.100.1/24']", "has host bits set"),
            (BASE + "network = ['::ffff:198.51.100.0/120']", "write it as IPv4"),
            (BASE + "not-before = 2026-01-01T00:00:00", "with its offset"),
            (BASE + "not-before = 2026-01-01", "with its offset"),
            (BASE + "not-before = 2026-01-01T00:00:00Z\nnot-after = 2026-01-01T00:00:00Z", "must be earlier"),
            (BASE + "limits = 7", "must be a table"),
            (BASE + "limits = { bytes-per-minute = 1 }", "unknown key 'bytes-per-minute'"),
            (BASE + "limits = { connections = 0 }", "at least 1"),
            (BASE + "limits = { connections = true }", "at least 1"),
            (BASE + "limits = { connections = 1.5 }", "at least 1"),
            (BASE + "effect = 'deny'\nlimits = { connections = 1 }", "denies has no limits"),
            (BASE + "direct = 'no'", "direct must be true or false"),
            (BASE + "effect = 'deny'\ndirect = false", "denies says nothing about direct paths"),
        ],
    )
    def test_a_mistake_is_an_error_that_names_its_rule(self, text: str, message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            rule(text)
        assert message in str(caught.value)
        assert str(caught.value).startswith("rules[1] 'one'") or "unknown key" in str(caught.value)

    @pytest.mark.parametrize("name", ["", "name = ''", "name = 7", 'name = "a\\u001b"'])
    def test_every_rule_has_a_printable_name(self, name: str) -> None:
        with pytest.raises(ConfigError, match=r"rules\[1\]: name must be text"):
            rules(f"[[rules]]\n{name}\n{BASE}")

    @pytest.mark.parametrize(("line", "direct"), [("", True), ("direct = true", True), ("direct = false", False)])
    def test_a_rule_says_whether_paths_may_be_direct(self, line: str, direct: bool) -> None:
        decision = rule(BASE + line).decide(wanted(dns=("a.example.com",)), NOW).decision
        assert isinstance(decision, Allow)
        assert decision.direct is direct

    def test_names_are_unique(self) -> None:
        with pytest.raises(ConfigError, match="taken by an earlier rule"):
            rules(f"[[rules]]\nname = 'a'\n{BASE}[[rules]]\nname = 'a'\n{BASE}")

    def test_a_rule_is_a_table(self) -> None:
        with pytest.raises(ConfigError, match="must be a table"):
            parse_rules(["everything"])
