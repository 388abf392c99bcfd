"""The sentences that failures end in."""

from __future__ import annotations

from pathlib import Path

import pytest

from intermediate_server.client.connection import Closed
from intermediate_server.client.reasons import Shown, of_end, of_failure, of_refusal
from intermediate_server.engine import Event
from intermediate_server.pki.authority import Authority
from intermediate_server.types import Role

SHOWN = Shown("ca.pem", "agent.pem", "relay.example")


@pytest.mark.parametrize(
    ("cause", "names", "told"),
    [
        ("unknown_issuer", [], "not signed by a CA in ca.pem (--ca-cert)"),
        (
            "wrong_name",
            ["ztna-server", "localhost"],
            "it is for ztna-server, localhost: dial one of these or set --serv",
        ),
        ("wrong_name", [], "not for relay.example; it names no host: give the relay one that does"),
        ("expired", [], "has expired: renew it there, or set the clock"),
        ("not_yet_valid", [], "begins later: set the clock"),
        ("wrong_purpose", [], "give the relay one with serverAuth"),
        ("authority_as_peer", [], "(CA:TRUE) as its own"),
        ("bad_certificate", [], "cannot be used: in words of TLS"),
        ("silent", [], "in words of TLS"),
    ],
)
def test_what_is_wrong_with_a_relay(cause: str, names: list[str], told: str) -> None:
    assert told in of_failure(Event.ConnectFailed(1, "in words of TLS", cause, 0, names), SHOWN)


@pytest.mark.parametrize(
    ("alert", "told"),
    [
        (116, "wants a client certificate; give --cert and --key"),
        (48, "agent.pem (--cert) is not signed by a CA it trusts"),
        (51, "agent.pem (--cert) is not signed by a CA it trusts"),
        (45, "agent.pem (--cert) has expired"),
        (44, "agent.pem (--cert) is revoked"),
        (43, "agent.pem (--cert) is not for clients"),
        (42, "cannot use our certificate agent.pem (--cert)"),
        (120, "another protocol than ztna-v1"),
        (80, "TLS alert 80"),
    ],
)
def test_what_the_relay_finds_wrong_with_us(alert: int, told: str) -> None:
    """The same before the handshake is complete and after it."""
    for text in (
        of_failure(Event.ConnectFailed(1, "", "peer", 0x100 + alert), SHOWN),
        of_end(Closed("peer", 0x100 + alert, ""), SHOWN),
    ):
        assert told in text


@pytest.mark.parametrize(
    ("closed", "told"),
    [
        (Closed("application", 4, "client certificate revoked"), "(code 4): client certificate revoked; see our cert"),
        (Closed("application", 0, ""), "the relay closed the connection (code 0): no reason given"),
        (Closed("peer", 2, ""), "takes no connections now"),
        (Closed("reset", 0, ""), "it was restarted"),
        (Closed("transport", 7, "bad frame"), "(transport, code 7): bad frame"),
    ],
)
def test_how_a_connection_ended(closed: Closed, told: str) -> None:
    assert told in of_end(closed, SHOWN)


def test_a_refused_registration_names_the_names(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.init()
    path = authority.certificate_file(authority.issue(Role.AGENT, "alice", services=["web", "db"]).name)
    text = of_refusal(Role.AGENT, "mail", path)
    assert text == f"none of the names in {path} (agent.web.ztna, agent.db.ztna) grants it, so a rule of the relay must"
    assert "agent.web.ztna in" in of_refusal(Role.AGENT, "web", path)
    assert "no certificate was shown" in of_refusal(Role.AGENT, "web", None)
    assert "not found" in of_refusal(Role.AGENT, "web", tmp_path / "gone.pem")
