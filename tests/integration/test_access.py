"""Access and its end: the real server with rules, revocation, expiry and reloads."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

import httpx
import pytest
from cryptography import x509

from intermediate_server.cli import main
from intermediate_server.errors import ConnectionClosed, RegistrationError
from intermediate_server.pki import development, keys
from intermediate_server.pki.authority import Authority
from intermediate_server.types import Role
from tests.integration.aioquic_peer import AioquicPeer
from tests.integration.conftest import PATIENCE
from tests.integration.packets import read_udp, udp_packet
from tests.integration.peers import AGENT, registration, to_service
from tests.integration.site import ALL_BY_CERTIFICATE, APPLICATION, INNER, PACKET, Site, allow, closed, issue, received

CERTIFICATE_REQUIRED = 0x100 + 116
"""The TLS alert as QUIC carries it (RFC 9001 section 4.8)."""


async def test_a_revoked_certificate_is_cut_and_refused(site: Site) -> None:
    server = await site.start(ALL_BY_CERTIFICATE)
    connector = await site.join(Role.CONNECTOR, "web", "connector.web.ztna")
    cert = server.certificate(["agent.web.ztna"])
    agent = await site.join(Role.AGENT, "web", cert=cert)
    other = await site.join(Role.AGENT, "web", "agent.web.ztna")
    agent.send(PACKET)
    await received(connector)
    Authority(site.state).revoke(cert[0].stem)
    # Nobody asks for a reload: the list is watched.
    await server.wait_log("Reloaded", why="a file has changed")
    begun = monotonic()
    assert await closed(agent) == (4, "client certificate revoked")
    assert monotonic() - begun < 5, "a second is what the benchmark measures"
    disconnected = await site.wait_decision("disconnected", cause="revoked")
    assert disconnected["identity"]["names"] == ["agent.web.ztna"]
    assert "is revoked" in disconnected["reason"]
    again = await site.dial(cert=cert)
    with pytest.raises(ConnectionClosed):
        await again.register(Role.AGENT, "web")
    assert await closed(again) == (4, "client certificate revoked")
    refused = await site.wait_decision("rejected", cause="revoked")
    assert not [line for line in site.decisions("allowed") if line["conn"] == refused["conn"]]
    assert await site.metric('ztna_connections_rejected_total{cause="revoked"}') == 1
    assert await site.metric('ztna_connections_disconnected_total{cause="revoked"}') == 1
    other.send(PACKET)
    assert read_udp(await received(connector)).payload == b"x"


async def test_a_denied_fingerprint_is_cut_and_refused(site: Site, tmp_path: Path) -> None:
    listed = tmp_path / "denied.txt"
    listed.write_text("# nobody yet\n")
    server = await site.start(ALL_BY_CERTIFICATE, "--deny-list", str(listed))
    cert = server.certificate(["agent.web.ztna"])
    agent = await site.join(Role.AGENT, "web", cert=cert)
    fingerprint = x509.load_pem_x509_certificate(cert[0].read_bytes()).fingerprint(keys.SHA256).hex()
    listed.write_text(f"no fingerprint\n{fingerprint}\n")
    assert "line 1: not a SHA-256 fingerprint" in (await site.reload()).json()["error"]
    assert agent.closed is None
    pairs = ":".join(fingerprint[at : at + 2] for at in range(0, 64, 2)).upper()
    listed.write_text(f"{pairs}  # lost laptop\n")
    assert (await site.reload_ends())[1] == 1
    assert await closed(agent) == (4, "client certificate revoked")
    assert await closed(await site.dial(cert=cert)) == (4, "client certificate revoked")


async def test_a_ca_that_leaves_ends_what_it_let_in(site: Site, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    other.init()
    issued = other.issue(Role.AGENT, "theirs", services=["web"])
    bundle = tmp_path / "bundle.pem"
    development.ensure_development(site.state, names=())
    own = Authority(site.state).certificate_path.read_bytes()
    bundle.write_bytes(own + other.certificate_path.read_bytes())
    await site.start(f'ca-cert = "{bundle}"\n{ALL_BY_CERTIFICATE}')
    mine = await site.join(Role.AGENT, "web", "agent.web.ztna")
    cert = other.certificate_file(issued.name), other.key_path(issued.name)
    theirs = await site.join(Role.AGENT, "web", cert=cert)
    bundle.write_bytes(own)
    # Nobody asks for a reload: the file is watched.
    assert await closed(theirs) == (7, "client certificate of a CA that is not trusted any more")
    disconnected = await site.wait_decision("disconnected", cause="authority")
    assert disconnected["lost"] == [{"role": "agent", "service": "web"}]
    again = await site.dial(cert=cert)
    async with asyncio.timeout(PATIENCE):
        assert (await again.wait_closed()).cause != "application", "TLS refuses it"
    assert mine.closed is None
    # What pki revokes counts although ca-cert names its CA.
    Authority(site.state).revoke("peer-1")
    assert await closed(mine) == (4, "client certificate revoked")


async def test_a_ca_that_has_ended_is_replaced_as_the_error_says(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    await site.start("")
    agent = await site.join(Role.AGENT, "web", "agent.web.ztna")
    Authority(site.state).revoke("peer-1")
    assert await closed(agent) == (4, "client certificate revoked")
    assert await site.server.terminate() == 0
    _, key = development.load_authority(site.state, now=keys.utc_now())
    end = keys.utc_now() - timedelta(seconds=1)
    ended = keys.sign_itself("development CA", key, not_before=end - timedelta(days=1), not_after=end)
    (site.state / "ca.pem").write_bytes(keys.certificate_pem(ended))

    arguments = ["--state-dir", str(site.state), "--config", str(site.config)]
    assert main(["check-config", *arguments]) == 2
    advice = capsys.readouterr().err
    assert "move it and" in advice
    for path in (site.state / "ca.pem", site.state / "ca.key"):
        assert str(path) in advice
        path.rename(path.with_suffix(".old"))
    # As the unit does, and then the start.
    assert main(["check-config", *arguments]) == 0
    site.server = await site.restart()
    again = await site.join(Role.AGENT, "web", "agent.web.ztna")
    Authority(site.state).revoke("peer-1")
    assert await closed(again) == (4, "client certificate revoked")


def early(payload: bytes) -> list[bytes]:
    """What an agent sends beside the last flight of its handshake, in hope."""
    packet = udp_packet(INNER, APPLICATION, payload)
    return [registration(AGENT, b"web"), packet, to_service(b"web", packet)]


@pytest.mark.parametrize(
    ("who", "refused"),
    [("a revoked certificate", {"revoked"}), ("no certificate", {"handshake"}), ("no usable name", set())],
)
async def test_what_comes_beside_the_last_flight_of_the_handshake_waits_for_the_decision(
    site: Site, who: str, refused: set[str]
) -> None:
    server = await site.start(ALL_BY_CERTIFICATE)
    connector = await site.join(Role.CONNECTOR, "web", "connector.web.ztna")
    certificate: tuple[Path, Path] | None = issue(site, "host.example.com")
    if who == "no certificate":
        certificate = None
    elif who == "a revoked certificate":
        certificate = server.certificate(["agent.web.ztna"])
        Authority(site.state).revoke(certificate[0].stem)
        assert (await site.reload()).status_code == 200
    for _ in range(10):
        async with AioquicPeer.start(
            server.address, ca_file=server.ca_file, certificate=certificate, first=early(b"bad")
        ) as peer:
            if who == "no usable name":
                assert await peer.reply() == b"\x13\x02\x03web", "a NACK and nothing else"
            else:
                end = await peer.terminated()
                code = 4 if who == "a revoked certificate" else CERTIFICATE_REQUIRED
                assert end.error_code == code
            assert peer.inbox.replies.empty(), "neither ACK nor NACK"
    assert await site.metric("ztna_registrations_total") == 1, "the connector's"
    assert {line["cause"] for line in site.decisions("rejected")} == refused
    good = await site.join(Role.AGENT, "web", "agent.web.ztna")
    good.send(udp_packet(INNER, APPLICATION, b"good"))
    assert read_udp(await received(connector)).payload == b"good", "nothing came before it"


async def test_an_early_registration_is_in_time(site: Site) -> None:
    server = await site.start(ALL_BY_CERTIFICATE)
    connector = await site.join(Role.CONNECTOR, "web", "connector.web.ztna")
    certificate = server.certificate(["agent.web.ztna"])
    async with AioquicPeer.start(
        server.address, ca_file=server.ca_file, certificate=certificate, first=early(b"early")
    ) as peer:
        assert await peer.reply() == b"\x12\x00\x03web"
        await peer.send(udp_packet(INNER, APPLICATION, b"good"))
        assert read_udp(await received(connector)).payload in (b"early", b"good")


async def test_a_certificate_is_cut_at_its_end(site: Site) -> None:
    await site.start("")
    cert = issue(site, "agent.web.ztna", end=timedelta(seconds=6))
    end = x509.load_pem_x509_certificate(cert[0].read_bytes()).not_valid_after_utc
    agent = await site.join(Role.AGENT, "web", cert=cert)
    assert await closed(agent) == (5, "client certificate expired")
    assert datetime.now(UTC) >= end
    disconnected = await site.wait_decision("disconnected", cause="expired")
    assert timedelta() <= datetime.fromisoformat(disconnected["time"]) - end < timedelta(seconds=5)


async def test_a_rule_is_revoked_at_its_end(site: Site) -> None:
    rules = allow("always", dns=["agent.*.ztna"], agent=["db"]) + allow("web", dns=["agent.*.ztna"], agent=["web"])
    await site.start(rules)
    agent = await site.join(Role.AGENT, "web", "agent.x.ztna")
    await agent.register(Role.AGENT, "db")
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    site.write(f"{rules}not-after = {end.isoformat()}\n")
    revoked = await site.wait_decision("revoked")
    assert (revoked["service"], revoked["cause"]) == ("web", "expired")
    assert timedelta() <= datetime.fromisoformat(revoked["time"]) - end < timedelta(seconds=5)
    assert agent.closed is None
    with pytest.raises(RegistrationError):
        await agent.register(Role.AGENT, "web")


async def test_anonymous_peers_get_what_the_rules_grant_them(site: Site) -> None:
    rules = allow("old agents", peers="anonymous", network=["127.0.0.0/8"], agent=["web"])
    await site.start(rules + ALL_BY_CERTIFICATE, "--client-auth", "optional")
    await site.server.wait_log("may register what the rules grant it")
    agent = await site.join(Role.AGENT, "web")
    with pytest.raises(RegistrationError):
        await agent.register(Role.CONNECTOR, "web")
    with pytest.raises(RegistrationError):
        await agent.register(Role.AGENT, "db")
    await site.join(Role.AGENT, "db", "agent.db.ztna")
    assert await site.metric("ztna_anonymous_clients") == 1
    listed = (await site.get("/anonymous")).json()
    assert listed["total"] == 1
    assert listed["clients"][0]["registrations"] == [{"role": "agent", "service": "web", "rule": "old agents"}]
    assert listed["clients"][0]["address"].startswith("127.0.0.1:")
    assert (await site.get("/readyz")).json()["anonymous_clients"] == 1
    clients = (await site.get("/status")).json()["clients"]["clients"]
    assert [client["identity"] and client["identity"]["names"] for client in clients] == [None, ["agent.db.ztna"]]
    page = await site.get("/status", accept="text/html")
    assert page.headers["content-type"].startswith("text/html")
    assert "<td>anonymous</td><td>agent of web by old agents</td>" in page.text
    assert "agent.db.ztna" in page.text
    line = await site.server.wait_log("Registration: Agent for service 'web'")
    assert line["identity"] == "anonymous"
    # The migration ends: anonymous peers are served no more.
    site.write(ALL_BY_CERTIFICATE)
    await site.reload()
    assert await closed(agent) == (3, "access revoked")
    assert await site.metric("ztna_anonymous_clients") == 0


async def test_certificates_may_become_required(site: Site) -> None:
    await site.start("")
    site.write('client-auth = "optional"\n')
    await site.reload()
    agent = await site.join(Role.AGENT, "web")
    (warning,) = (await site.get("/readyz")).json()["warnings"]
    assert "any service, as its agent and as its connector" in warning
    await site.server.wait_log(warning)
    site.write('client-auth = "required"\n')
    assert (await site.reload_ends())[1] == 1
    assert await closed(agent) == (6, "a client certificate is required")
    assert (await site.get("/readyz")).json()["warnings"] == []


async def test_unnamed_certificates_are_allowed_where_that_is_asked_for(site: Site) -> None:
    await site.start("allow-unnamed-certs = true\n")
    connection = await site.join(Role.CONNECTOR, "anything", cert=issue(site, "host.example.com"))
    assert any("allow-unnamed-certs" in text for text in (await site.get("/readyz")).json()["warnings"])
    site.write("")
    assert (await site.reload_ends())[0] == 1
    assert await closed(connection) == (3, "access revoked")


async def test_an_operator_disconnects_one_client(site: Site) -> None:
    await site.start(ALL_BY_CERTIFICATE)
    agent = await site.join(Role.AGENT, "web", "agent.web.ztna")
    other = await site.join(Role.AGENT, "web", "agent.web.ztna")
    conns = [client["conn"] for client in (await site.get("/status")).json()["clients"]["clients"]]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{site.port}") as http:
        path = f"/clients/{conns[0]}/disconnect"
        assert (await http.post(path)).status_code == 403
        assert (await http.post(path, headers=site.proof)).json() == {"disconnected": conns[0]}
        assert await closed(agent) == (0, "disconnected by the operator")
        line = await site.wait_decision("disconnected", cause="operator")
        assert (line["conn"], line["lost"]) == (conns[0], [{"role": "agent", "service": "web"}])
        await site.wait_metric("ztna_active_connections", 1)
        assert (await http.post(path, headers=site.proof)).status_code == 404
    await other.register(Role.AGENT, "web")
    assert await site.metric('ztna_connections_disconnected_total{cause="operator"}') == 1
