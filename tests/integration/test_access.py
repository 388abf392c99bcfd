"""Who may reach what, and how fast it ends: the real server with rules, revocation, expiry and limits."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import stat
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from intermediate_server.client import ClientEngine, Connection
from intermediate_server.errors import ConnectionClosed, RegistrationError
from intermediate_server.pki import development, keys
from intermediate_server.pki.authority import Authority
from intermediate_server.types import Role
from tests.integration.aioquic_peer import AioquicPeer
from tests.integration.conftest import PATIENCE, Server, StartServer
from tests.integration.peers import AGENT, read_udp, registration, to_service, udp_packet

INNER = ("100.64.0.1", 5_000)
APPLICATION = ("10.0.0.5", 53)
PACKET = udp_packet(INNER, APPLICATION, b"x")

ALL_BY_CERTIFICATE = """
[[rules]]
name = "by certificate"
peers = "certified"
services = "certificate"
"""


def allow(name: str, **keys_and_values: object) -> str:
    """One rule as TOML."""
    lines = [f"{key.replace('_', '-')} = {json.dumps(value)}" for key, value in keys_and_values.items()]
    return "\n".join(["[[rules]]", f'name = "{name}"', *lines, ""])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Site:
    """A configuration file, a server that uses it, and its admin address."""

    def __init__(self, directory: Path, start: StartServer, engine: ClientEngine) -> None:
        self.config = directory / "config.toml"
        self.state = directory / "state"
        self.audit = directory / "audit.jsonl"
        self.port = free_port()
        self._start = start
        self._engine = engine
        self.server: Server

    def write(self, text: str) -> None:
        """Replace the configuration file by a rename, as careful programs do."""
        made = self.config.with_suffix(".new")
        made.write_text(text)
        made.rename(self.config)

    async def start(self, text: str, *flags: str) -> Server:
        self.write(text)
        arguments = ["--config", str(self.config), "--metrics-port", str(self.port), "--audit-log", str(self.audit)]
        self.server = await self._start(*arguments, *flags, state_dir=self.state)
        return self.server

    async def restart(self) -> Server:
        """Another server with the same files; audit lines of the one before are gone."""
        self.audit.unlink()
        arguments = ["--config", str(self.config), "--metrics-port", str(self.port), "--audit-log", str(self.audit)]
        return await self._start(*arguments, state_dir=self.state)

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}") as http:
            return await http.get(path)

    async def reload(self) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE) as http:
            return await http.post("/reload")

    async def metric(self, name: str) -> float:
        for line in (await self.get("/metrics")).text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        raise AssertionError(f"no metric {name}")

    async def wait_metric(self, name: str, value: float) -> None:
        await until(lambda: self._is(name, value), f"{name} {value}")

    async def _is(self, name: str, value: float) -> bool:
        return await self.metric(name) == value

    async def dial(self, *names: str, cert: tuple[Path, Path] | None = None) -> Connection:
        """Connect with a new certificate for these names, with ``cert``, or with none."""
        cert_file, key_file = self.server.issue(list(names)) if names else cert or (None, None)
        return await self._engine.connect(
            self.server.address,
            ca_file=self.server.ca_file,
            server_name="ztna-server",
            cert_file=cert_file,
            key_file=key_file,
        )

    async def join(self, role: Role, service: str, *names: str, cert: tuple[Path, Path] | None = None) -> Connection:
        connection = await self.dial(*names, cert=cert)
        await connection.register(role, service)
        return connection

    def decisions(self, decision: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.audit.read_text().splitlines()]
        return [line for line in lines if line["decision"] == decision]

    async def wait_decision(self, decision: str, **fields: object) -> dict[str, Any]:
        """The first audit line of this decision with these fields."""

        async def found() -> list[dict[str, Any]]:
            return [line for line in self.decisions(decision) if all(line[key] == fields[key] for key in fields)]

        await until(found, f"audit line {decision} {fields}")
        return (await found())[0]


async def until(condition: Callable[[], Awaitable[object]], what: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - another process decides when
            await asyncio.sleep(0.02)


async def closed(connection: Connection) -> tuple[int, str]:
    async with asyncio.timeout(PATIENCE):
        end = await connection.wait_closed()
    assert end.cause == "application", end
    return end.code, end.reason


async def received(connection: Connection) -> bytes:
    async with asyncio.timeout(PATIENCE):
        return await connection.receive()


@pytest.fixture
def site(tmp_path: Path, start_server: StartServer, engine: ClientEngine) -> Site:
    return Site(tmp_path, start_server, engine)


async def test_rules_decide_and_a_reload_cuts_live_connections(site: Site) -> None:
    rules = allow("agents", dns=["agent.*.ztna"], agent=["web", "db"]) + allow(
        "connectors", dns=["connector.*.ztna"], connector=["*"]
    )
    await site.start(rules)
    connector = await site.join(Role.CONNECTOR, "web", "connector.x.ztna")
    both = await site.join(Role.AGENT, "web", "agent.x.ztna")
    await both.register(Role.AGENT, "db")
    only = [await site.join(Role.AGENT, "web", "agent.x.ztna") for _ in range(20)]
    with pytest.raises(RegistrationError):
        await both.register(Role.AGENT, "mail")
    denied = await site.wait_decision("denied")
    assert (denied["service"], denied["rule"], denied["reason"]) == ("mail", "default", "no rule matches")
    for agent in only:
        agent.send(PACKET)
        await received(connector)

    site.write(rules.replace('"web", ', ""))
    answer = await site.reload()
    assert answer.status_code == 200
    assert answer.json() | {"changed": None} == {
        "reloaded": True,
        "error": None,
        "changed": None,
        "needs_restart": [],
        "withdrawn": 21,
        "closed": 0,
    }
    for agent in only:
        assert await closed(agent) == (3, "access withdrawn")
    assert both.closed is None
    both.send(PACKET, service="web")
    assert (await received(both))[20:22] == b"\x03\x0d", "administratively prohibited"
    withdrawn = await site.wait_decision("withdrawn", conn=denied["conn"])
    assert (withdrawn["service"], withdrawn["role"], withdrawn["cause"]) == ("web", "agent", "policy")
    assert len(site.decisions("cut")) == 20
    assert await site.metric('ztna_registrations_withdrawn_total{cause="policy"}') == 21


async def test_a_changed_file_is_noticed(site: Site) -> None:
    await site.start(ALL_BY_CERTIFICATE)
    agent = await site.join(Role.AGENT, "web", "agent.web.ztna")
    site.write(allow("nobody", effect="deny", peers="anyone", agent=["*"]))
    assert await closed(agent) == (3, "access withdrawn")
    assert (await site.server.wait_log("Reloaded"))["why"] == "a file has changed"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALL_BY_CERTIFICATE.replace("peers", "pears"), "unknown key 'pears'; did you mean 'peers'?"),
        ("rules = 3", "can only be written as tables"),
        ('policy = "nowhere:Policy"', "nowhere"),
        ('policy = "a:b"\n' + ALL_BY_CERTIFICATE, "rules and policy are both set"),
        ('crl = "/nonexistent.pem"\n', "revocation list not found"),
        ('deny-list = "/nonexistent.txt"\n', "deny list not found"),
        ('audit-log = "/nonexistent/audit"\n', "audit log"),
        ("portt = 4", "did you mean port?"),
    ],
)
async def test_an_invalid_reload_changes_nothing_and_says_why(
    site: Site, text: str, message: str, start_server: StartServer
) -> None:
    site.write(ALL_BY_CERTIFICATE)
    arguments = ["--config", str(site.config), "--metrics-port", str(site.port)]
    site.server = await start_server(*arguments, state_dir=site.state)
    agent = await site.join(Role.AGENT, "web", "agent.web.ztna")
    site.write(text)
    site.server.signal(signal.SIGHUP)
    line = await site.server.wait_log("Reload failed")
    assert message in line["reason"]
    ready = await site.get("/readyz")
    assert ready.status_code == 200
    assert message in ready.json()["reload_error"]
    await agent.register(Role.AGENT, "web")
    connector = await site.join(Role.CONNECTOR, "web", "connector.web.ztna")
    agent.send(PACKET)
    await received(connector)
    # Once it is repaired all is well again.
    site.write(ALL_BY_CERTIFICATE)
    assert (await site.reload()).status_code == 200
    assert (await site.get("/readyz")).json()["reload_error"] is None


async def test_settings_that_need_a_restart_are_named(site: Site) -> None:
    await site.start("idle-timeout = 31\n" + ALL_BY_CERTIFICATE)
    site.write("idle-timeout = 32\n" + ALL_BY_CERTIFICATE)
    assert (await site.reload()).json()["needs_restart"] == ["idle_timeout"]
    await site.server.wait_log("need a restart", settings="idle_timeout")


async def test_a_reload_is_only_taken_from_programs_of_this_host(site: Site) -> None:
    await site.start("")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{site.port}") as http:
        assert (await http.post("/reload", headers={"Origin": "http://evil.example"})).status_code == 403
        assert (await http.get("/reload")).status_code == 405


async def test_a_revoked_certificate_is_cut_and_refused(site: Site) -> None:
    server = await site.start(ALL_BY_CERTIFICATE)
    connector = await site.join(Role.CONNECTOR, "web", "connector.web.ztna")
    cert = server.issue(["agent.web.ztna"])
    agent = await site.join(Role.AGENT, "web", cert=cert)
    other = await site.join(Role.AGENT, "web", "agent.web.ztna")
    agent.send(PACKET)
    await received(connector)
    Authority(site.state).revoke(cert[0].stem)
    # Nobody asks for a reload: the list is watched.
    assert await closed(agent) == (4, "client certificate revoked")
    cut = await site.wait_decision("cut", cause="revoked")
    assert cut["identity"]["names"] == ["agent.web.ztna"]
    assert "is revoked" in cut["reason"]
    again = await site.dial(cert=cert)
    with pytest.raises(ConnectionClosed):
        await again.register(Role.AGENT, "web")
    assert await closed(again) == (4, "client certificate revoked")
    refused = await site.wait_decision("refused", cause="revoked")
    assert not [line for line in site.decisions("allowed") if line["conn"] == refused["conn"]]
    assert await site.metric('ztna_connections_refused_total{cause="revoked"}') == 1
    assert await site.metric('ztna_connections_cut_total{cause="revoked"}') == 1
    other.send(PACKET)
    assert read_udp(await received(connector)).payload == b"x"


async def test_a_denied_fingerprint_is_cut_and_refused(site: Site, tmp_path: Path) -> None:
    listed = tmp_path / "denied.txt"
    listed.write_text("# nobody yet\n")
    server = await site.start(ALL_BY_CERTIFICATE, "--deny-list", str(listed))
    cert = server.issue(["agent.web.ztna"])
    agent = await site.join(Role.AGENT, "web", cert=cert)
    fingerprint = x509.load_pem_x509_certificate(cert[0].read_bytes()).fingerprint(keys.SHA256).hex()
    listed.write_text(f"no fingerprint\n{fingerprint}\n")
    assert "line 1: not a SHA-256 fingerprint" in (await site.reload()).json()["error"]
    assert agent.closed is None
    pairs = ":".join(fingerprint[at : at + 2] for at in range(0, 64, 2)).upper()
    listed.write_text(f"{pairs}  # lost laptop\n")
    assert (await site.reload()).json()["closed"] == 1
    assert await closed(agent) == (4, "client certificate revoked")
    assert await closed(await site.dial(cert=cert)) == (4, "client certificate revoked")


async def test_what_comes_beside_the_last_flight_of_the_handshake_waits_for_the_decision(site: Site) -> None:
    server = await site.start(ALL_BY_CERTIFICATE)
    connector = await site.join(Role.CONNECTOR, "web", "connector.web.ztna")
    revoked, good = server.issue(["agent.web.ztna"]), server.issue(["agent.web.ztna"])
    Authority(site.state).revoke(revoked[0].stem)
    assert (await site.reload()).status_code == 200

    def first(payload: bytes) -> list[bytes]:
        packet = udp_packet(INNER, APPLICATION, payload)
        return [registration(AGENT, b"web"), packet, to_service(b"web", packet)]

    for _ in range(10):
        async with AioquicPeer.start(
            server.address, ca_file=server.ca_file, certificate=revoked, first=first(b"bad")
        ) as peer:
            end = await peer.terminated()
            assert (end.error_code, end.reason_phrase) == (4, "client certificate revoked")
            assert peer.inbox.replies.empty(), "no ACK and no NACK"
    async with AioquicPeer.start(
        server.address, ca_file=server.ca_file, certificate=good, first=first(b"early")
    ) as peer:
        assert await peer.reply() == b"\x12\x00\x03web", "the registration itself is in time"
        await peer.send(udp_packet(INNER, APPLICATION, b"good"))
        payloads = {read_udp(await received(connector)).payload}
        assert payloads <= {b"early", b"good"}
    assert await site.metric("ztna_registrations_total") == 2
    assert {line["cause"] for line in site.decisions("refused")} == {"revoked"}
    assert len(site.decisions("refused")) == 10


def short_lived(site: Site, *, seconds: float) -> tuple[Path, Path]:
    """A certificate for agents of web that ends soon."""
    authority, authority_key = development.load_authority(site.state, now=keys.utc_now())
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = keys.sign(
        subject=keys.common_name("short"),
        public_key=key.public_key(),
        authority=authority,
        authority_key=authority_key,
        names=[x509.DNSName("agent.web.ztna")],
        usage=keys.CLIENT_AUTH,
        not_before=now - timedelta(hours=1),
        not_after=now + timedelta(seconds=seconds),
    )
    paths = site.state / "short.pem", site.state / "short.key"
    paths[0].write_bytes(keys.certificate_pem(certificate))
    paths[1].touch(mode=0o600)
    paths[1].write_bytes(keys.key_pem(key))
    return paths


async def test_a_certificate_is_cut_at_its_end(site: Site) -> None:
    await site.start("")
    cert = short_lived(site, seconds=4)
    end = x509.load_pem_x509_certificate(cert[0].read_bytes()).not_valid_after_utc
    agent = await site.join(Role.AGENT, "web", cert=cert)
    assert await closed(agent) == (5, "client certificate expired")
    assert datetime.now(UTC) >= end
    cut = await site.wait_decision("cut", cause="expired")
    assert timedelta() <= datetime.fromisoformat(cut["time"]) - end < timedelta(seconds=1)


async def test_a_rule_is_withdrawn_at_its_end(site: Site) -> None:
    end = datetime.now(UTC) + timedelta(seconds=4)
    rules = f"{allow('for a while', dns=['agent.*.ztna'], agent=['web'])}not-after = {end.isoformat()}\n"
    await site.start(rules + allow("always", dns=["agent.*.ztna"], agent=["db"]))
    agent = await site.join(Role.AGENT, "web", "agent.x.ztna")
    await agent.register(Role.AGENT, "db")
    withdrawn = await site.wait_decision("withdrawn")
    assert (withdrawn["service"], withdrawn["cause"]) == ("web", "expired")
    assert timedelta() <= datetime.fromisoformat(withdrawn["time"]) - end < timedelta(seconds=1)
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
    # The migration ends: anonymous peers are served no more.
    site.write(ALL_BY_CERTIFICATE)
    await site.reload()
    assert await closed(agent) == (3, "access withdrawn")
    assert await site.metric("ztna_anonymous_clients") == 0


async def test_certificates_may_become_required(site: Site) -> None:
    await site.start('client-auth = "optional"\n')
    agent = await site.join(Role.AGENT, "web")
    assert (await site.get("/readyz")).json()["warnings"]
    site.write('client-auth = "required"\n')
    assert (await site.reload()).json()["closed"] == 1
    assert await closed(agent) == (6, "a client certificate is required")
    assert (await site.get("/readyz")).json()["warnings"] == []


async def test_unnamed_certificates_are_allowed_where_that_is_asked_for(site: Site) -> None:
    server = await site.start("allow-unnamed-certs = true\n")
    authority, authority_key = development.load_authority(site.state, now=keys.utc_now())
    cert, key_file = server.issue(["agent.web.ztna"])
    key = keys.load_key(key_file)
    unnamed = keys.sign(
        subject=keys.common_name("old"),
        public_key=key.public_key(),
        authority=authority,
        authority_key=authority_key,
        names=[x509.DNSName("host.example.com")],
        usage=keys.CLIENT_AUTH,
        not_before=datetime.now(UTC) - timedelta(hours=1),
        not_after=datetime.now(UTC) + timedelta(hours=1),
    )
    cert.write_bytes(keys.certificate_pem(unnamed))
    connection = await site.join(Role.CONNECTOR, "anything", cert=(cert, key_file))
    assert any("allow-unnamed-certs" in text for text in (await site.get("/readyz")).json()["warnings"])
    site.write("")
    assert (await site.reload()).json()["withdrawn"] == 1
    assert await closed(connection) == (3, "access withdrawn")


async def test_the_oldest_connections_of_an_identity_stay(site: Site) -> None:
    limited = allow("two at a time", dns=["agent.*.ztna"], agent=["*"]) + "limits = { connections = 2 }\n"
    server = await site.start(limited)
    cert = server.issue(["agent.x.ztna"])
    first, second = [await site.join(Role.AGENT, "web", cert=cert) for _ in range(2)]
    third = await site.dial(cert=cert)
    with pytest.raises(RegistrationError):
        await third.register(Role.AGENT, "web")
    denied = await site.wait_decision("denied")
    assert (denied["cause"], denied["rule"]) == ("connections", "two at a time")
    await second.register(Role.AGENT, "db")
    await site.join(Role.AGENT, "web", "agent.y.ztna")
    await first.close()
    await server.wait_log("Connection closed")
    await third.register(Role.AGENT, "web")
    # A lower limit leaves the oldest of them.
    site.write(limited.replace("connections = 2", "connections = 1"))
    assert (await site.reload()).json()["withdrawn"] == 1
    assert await closed(third) == (3, "access withdrawn")
    assert second.closed is None


async def test_a_monthly_volume_counts_over_a_restart_and_ends_what_it_limits(site: Site) -> None:
    limited = allow("by the month", dns=["agent.*.ztna"], agent=["web"]) + "limits = { bytes-per-month = 10_000 }\n"
    free = allow("free", dns=["agent.*.ztna"], agent=["db"])
    rules = limited + free + allow("connectors", dns=["connector.*.ztna"], connector=["*"])
    server = await site.start(rules)
    cert, other_cert = server.issue(["agent.x.ztna"]), server.issue(["agent.y.ztna"])
    connector_cert = server.issue(["connector.x.ztna"])

    async def move(count: int) -> Connection:
        connector = await site.join(Role.CONNECTOR, "web", cert=connector_cert)
        agent = await site.join(Role.AGENT, "web", cert=cert)
        packet = udp_packet(INNER, APPLICATION, bytes(1_000 - 28))
        for _ in range(count):
            agent.send(packet)
            await received(connector)
        return agent

    await move(6)
    assert await server.terminate() == 0
    site.server = server = await site.restart()
    agent = await move(3)
    assert agent.closed is None, "9,000 bytes are within the month"
    await agent.register(Role.AGENT, "db")
    agent.send(udp_packet(INNER, APPLICATION, bytes(1_000)))
    withdrawn = await site.wait_decision("withdrawn")
    assert (withdrawn["cause"], withdrawn["service"], withdrawn["rule"]) == ("volume", "web", "by the month")
    assert "10000 bytes of this month are used up" in withdrawn["reason"]
    assert agent.closed is None, "the other service has no limit"
    with pytest.raises(RegistrationError):
        await agent.register(Role.AGENT, "web")
    await site.join(Role.AGENT, "web", cert=other_cert)
    assert await server.terminate() == 0

    # What cannot be read is moved aside, and counting begins anew.
    (site.state / "volume.db").write_bytes(b"no database" * 100)
    site.server = await site.restart()
    await site.join(Role.AGENT, "web", cert=cert)
    assert any("count from zero" in text for text in (await site.get("/readyz")).json()["warnings"])
    assert list(site.state.glob("volume.db.damaged-*"))


async def test_a_rate_is_kept(site: Site) -> None:
    rules = allow("slow", dns=["agent.x.ztna"], agent=["web"]) + "limits = { packets-per-second = 40 }\n"
    rules += allow("fast", dns=["agent.y.ztna"], agent=["web"])
    await site.start(rules + allow("connectors", dns=["connector.*.ztna"], connector=["*"]))
    connector = await site.join(Role.CONNECTOR, "web", "connector.x.ztna")
    slow = await site.join(Role.AGENT, "web", "agent.x.ztna")
    fast = await site.join(Role.AGENT, "web", "agent.y.ztna")
    slow.send_many([udp_packet(INNER, APPLICATION, b"slow")] * 100)
    fast.send_many([udp_packet(INNER, APPLICATION, b"fast")] * 100)
    fast.send(udp_packet(INNER, APPLICATION, b"last"))
    payloads = []
    while b"last" not in payloads:
        payloads.append(read_udp(await received(connector)).payload)
    assert payloads.count(b"fast") == 100
    assert payloads.count(b"slow") < 100
    assert await site.metric('ztna_drops_by_class_total{class="certificate",reason="rate_limited"}') > 0


async def test_audit_lines_hold_who_what_and_why_and_no_secret(site: Site) -> None:
    await site.start(ALL_BY_CERTIFICATE)
    agent = await site.join(Role.AGENT, "web", "agent.web.ztna")
    with pytest.raises(RegistrationError):
        await agent.register(Role.CONNECTOR, "web")
    line = await site.wait_decision("allowed")
    assert set(line) == {
        "event",
        "time",
        "decision",
        "cause",
        "conn",
        "address",
        "role",
        "service",
        "identity",
        "rule",
        "reason",
    }
    assert (line["role"], line["service"], line["rule"]) == ("agent", "web", "by certificate")
    assert line["identity"]["names"] == ["agent.web.ztna"]
    assert line["identity"]["subject"] == "CN=peer-1"
    await site.wait_decision("denied", role="connector")
    assert stat.S_IMODE(site.audit.stat().st_mode) == 0o600
    # After a rotation a new file is used, also when the configuration cannot be.
    site.audit.rename(site.audit.with_suffix(".1"))
    site.write("nonsense = 1")
    site.server.signal(signal.SIGHUP)
    await site.server.wait_log("Reload failed")
    await site.join(Role.AGENT, "db", "agent.db.ztna")
    await until(lambda: asyncio.to_thread(site.audit.read_text), "a line in the new file")
    assert "PRIVATE KEY" not in site.audit.read_text()


async def test_a_full_disk_does_not_end_the_relay(site: Site) -> None:
    await site.start(ALL_BY_CERTIFICATE)
    site.write('audit-log = "/dev/full"\n' + ALL_BY_CERTIFICATE)
    await site.server.terminate()
    site.port = free_port()
    site.server = await site._start(
        "--config", str(site.config), "--metrics-port", str(site.port), state_dir=site.state
    )
    await site.join(Role.AGENT, "web", "agent.web.ztna")
    await site.wait_metric('ztna_records_lost_total{record="audit_lines"}', 1)
    await site.server.wait_log("Audit log cannot be written")
    await site.join(Role.AGENT, "web", "agent.web.ztna")


async def test_reload_while_relaying_cuts_within_a_second(site: Site) -> None:
    rules = allow("agents", dns=["agent.*.ztna"], agent=["*"])
    await site.start(rules + allow("connectors", dns=["connector.*.ztna"], connector=["*"]))
    connector = await site.join(Role.CONNECTOR, "web", "connector.x.ztna")
    cert = site.server.issue(["agent.x.ztna"])
    agents = await asyncio.gather(*(site.join(Role.AGENT, "web", cert=cert) for _ in range(200)))
    ending = asyncio.Event()

    async def talk() -> None:
        while not ending.is_set():
            for agent in agents:
                if agent.closed is None:
                    agent.send(PACKET)
            await asyncio.sleep(0.01)

    last = time.monotonic()

    async def listen() -> None:
        nonlocal last
        while True:
            await connector.receive()
            last = time.monotonic()

    async with asyncio.TaskGroup() as tasks:
        talking = tasks.create_task(talk())
        listening = tasks.create_task(listen())
        await received(connector)
        site.write(allow("connectors", dns=["connector.*.ztna"], connector=["*"]))
        begun = time.monotonic()
        assert (await site.reload()).json()["withdrawn"] == 200
        for agent in agents:
            assert await closed(agent) == (3, "access withdrawn")
        ending.set()
        await talking
        listening.cancel()
    assert last - begun < 1.0
