"""The policy that reads the names in certificates."""

from __future__ import annotations

import pytest
from tests.unit.registering import peer, wanted

from intermediate_server.policy import (
    Allow,
    CertificatePolicy,
    Deny,
)
from intermediate_server.policy.certificate import parse_name
from intermediate_server.types import Registration, Role


class TestNames:
    @pytest.mark.parametrize(
        ("name", "grant"),
        [
            ("agent.web.ztna", (Role.AGENT, "web")),
            ("connector.web.ztna", (Role.CONNECTOR, "web")),
            ("agent.db.prod.ztna", (Role.AGENT, "db.prod")),
            ("agent.ztna.ztna", (Role.AGENT, "ztna")),
            ("agent.agent.web.ztna", (Role.AGENT, "agent.web")),
            ("agent.*.ztna", (Role.AGENT, "*")),
            ("agent.*.prod.ztna", (Role.AGENT, "*.prod")),
            ("AGENT.Web.ZTNA", (Role.AGENT, "web")),
            ("agent..ztna", None),
            ("agent.ztna", None),
            ("agent.web.ztna.", None),
            ("agent.web.ztna.example.com", None),
            ("agent.webztna", None),
            ("agentx.web.ztna", None),
            ("xagent.web.ztna", None),
            (".web.ztna", None),
            ("web.ztna", None),
            (".ztna", None),
            ("ztna", None),
            ("", None),
            ("agent.web\0.ztna", None),
            ("agent.web.ztna\0", None),
            ("agent.web.ztna\0.example.com", None),
            ("agent.web\n.ztna", None),
            ("agent.web\x7f.ztna", None),
            ("agent.web\u202e.ztna", None),
        ],
    )
    def test_what_a_name_grants(self, name: str, grant: tuple[Role, str] | None) -> None:
        assert parse_name(name) == grant


class TestCertificatePolicy:
    strict = CertificatePolicy(anonymous=False)

    async def test_grants_the_role_and_the_service_that_are_named(self) -> None:
        names = ("relay.example", "agent.web.ztna", "connector.db.ztna")
        assert await self.strict.authorize(wanted(*names)) == Allow("certificate name agent.web.ztna")
        assert isinstance(self.strict.decide(wanted(*names, role=Role.CONNECTOR, service="db")), Allow)
        for role, service in (
            (Role.CONNECTOR, "web"),
            (Role.AGENT, "db"),
            (Role.AGENT, "we"),
            (Role.AGENT, "web "),
            (Role.AGENT, ""),
        ):
            assert isinstance(self.strict.decide(wanted(*names, role=role, service=service)), Deny)

    def test_the_star_grants_every_service_of_its_role(self) -> None:
        for service in ("web", "", "*", "db.prod", "a\0b"):
            assert isinstance(self.strict.decide(wanted("agent.*.ztna", service=service)), Allow)
            assert isinstance(self.strict.decide(wanted("agent.*.ztna", role=Role.CONNECTOR, service=service)), Deny)

    def test_asking_for_the_star_is_not_having_it(self) -> None:
        assert isinstance(self.strict.decide(wanted("agent.web.ztna", service="*")), Deny)

    @pytest.mark.parametrize("service", ["Web", "WEB", "wEb"])
    def test_service_ids_with_capitals_can_be_granted(self, service: str) -> None:
        assert isinstance(self.strict.decide(wanted("agent.web.ztna", service=service)), Allow)

    @pytest.mark.parametrize(("name", "service"), [("ssh", "\u017fsh"), ("kafka", "\u212aafka"), ("strasse", "straße")])
    def test_letters_that_only_look_alike_are_others(self, name: str, service: str) -> None:
        assert isinstance(self.strict.decide(wanted(f"agent.{name}.ztna", service=service)), Deny)

    def test_one_good_name_among_three_hundred_is_found(self) -> None:
        names = [f"agent.service-{number}.ztna" for number in range(300)]
        assert isinstance(self.strict.decide(wanted(*names, service="service-299")), Allow)
        assert isinstance(self.strict.decide(wanted(*names, service="service-300")), Deny)

    def test_only_dns_names_of_the_certificate_count(self) -> None:
        assert isinstance(self.strict.decide(wanted()), Deny), "neither the common name nor a URI grants anything"

    @pytest.mark.parametrize("names", [(), ("laptop.example.com",)])
    def test_an_unnamed_certificate_is_granted_nothing_unless_told(self, names: tuple[str, ...]) -> None:
        assert isinstance(self.strict.decide(wanted(*names)), Deny)
        lenient = CertificatePolicy(anonymous=False, allow_unnamed=True)
        assert lenient.decide(wanted(*names)) == Allow("unnamed certificate")

    @pytest.mark.parametrize(
        "name", ["agnet.web.ztna", "agent.ztna", "agent..ztna", "ztna", "agent.db.ztna", "agent.web.ztna\0.example.com"]
    )
    def test_a_misspelt_name_is_never_taken_for_none(self, name: str) -> None:
        lenient = CertificatePolicy(anonymous=True, allow_unnamed=True)
        assert isinstance(lenient.decide(wanted(name)), Deny)

    def test_anonymous_peers_only_where_allowed(self) -> None:
        registration = Registration(peer(), Role.CONNECTOR, "web")
        assert CertificatePolicy(anonymous=True).decide(registration) == Allow("anonymous")
        assert isinstance(CertificatePolicy(anonymous=False, allow_unnamed=True).decide(registration), Deny)
