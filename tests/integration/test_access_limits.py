"""What a peer may use, and what is written down of it: the real server with limits and an audit log."""

from __future__ import annotations

import asyncio
import base64
import signal
import stat
import time
from functools import partial
from pathlib import Path

import pytest

from intermediate_server.client import Connection
from intermediate_server.errors import RegistrationError
from intermediate_server.pki import development
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE
from tests.integration.packets import read_udp, udp_packet
from tests.integration.site import (
    ALL_BY_CERTIFICATE,
    APPLICATION,
    INNER,
    Site,
    allow,
    closed,
    free_port,
    received,
    until,
)


async def test_the_oldest_connections_of_an_identity_stay(site: Site) -> None:
    limited = allow("two at a time", dns=["agent.*.ztna"], agent=["*"]) + "limits = { connections = 2 }\n"
    server = await site.start(limited)
    cert = server.certificate(["agent.x.ztna"])
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
    assert (await site.reload_ends())[0] == 1
    assert await closed(third) == (3, "access revoked")
    assert second.closed is None


async def test_a_monthly_usage_counts_over_a_restart_and_ends_what_it_limits(site: Site) -> None:
    limited = allow("by the month", dns=["agent.*.ztna"], agent=["web"]) + "limits = { bytes-per-month = 10_000 }\n"
    free = allow("free", dns=["agent.*.ztna"], agent=["db"])
    rules = limited + free + allow("connectors", dns=["connector.*.ztna"], connector=["*"])
    server = await site.start(rules)
    cert, other_cert = server.certificate(["agent.x.ztna"]), server.certificate(["agent.y.ztna"])
    connector_cert = server.certificate(["connector.x.ztna"])

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
    revoked = await site.wait_decision("revoked")
    assert (revoked["cause"], revoked["service"], revoked["rule"]) == ("volume", "web", "by the month")
    assert "10000 bytes of this month are used up" in revoked["reason"]
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


async def test_reconnecting_renews_no_rate(site: Site) -> None:
    rules = allow("slow", dns=["agent.x.ztna"], agent=["web"]) + "limits = { packets-per-second = 1 }\n"
    rules += allow("fast", dns=["agent.y.ztna"], agent=["web"])
    server = await site.start(rules + allow("connectors", dns=["connector.*.ztna"], connector=["*"]))
    connector = await site.join(Role.CONNECTOR, "web", "connector.x.ztna")
    cert = server.certificate(["agent.x.ztna"])
    begun = time.monotonic()
    for _ in range(10):
        slow = await site.join(Role.AGENT, "web", cert=cert)
        slow.send_many([udp_packet(INNER, APPLICATION, b"slow")] * 8)
        await slow.register(Role.AGENT, "web")  # what was sent before is through now
        await slow.close()
    fast = await site.join(Role.AGENT, "web", "agent.y.ztna")
    fast.send(udp_packet(INNER, APPLICATION, b"last"))
    payloads = []
    while b"last" not in payloads:
        payloads.append(read_udp(await received(connector)).payload)
    assert 0 < payloads.count(b"slow") <= 9 + time.monotonic() - begun


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


async def test_handshakes_that_tls_refuses_are_in_the_audit_log(site: Site, tmp_path: Path) -> None:
    await site.start(ALL_BY_CERTIFICATE)
    made = development.ensure_development(tmp_path / "other", names=())
    for cert in (None, (made.cert, made.key)):
        stranger = await site.dial(cert=cert)
        async with asyncio.timeout(PATIENCE):
            assert (await stranger.wait_closed()).cause != "application"

    async def both() -> bool:
        return len(site.decisions("rejected")) == 2

    await until(both, "a line for each")
    none, other = site.decisions("rejected")
    for line in (none, other):
        assert (line["cause"], line["conn"], line["identity"]) == ("handshake", None, None)
        assert line["address"].startswith("127.0.0.1:")
    assert "certificate" in none["reason"]
    assert none["reason"] != other["reason"]


async def test_failed_handshakes_are_in_the_audit_log_by_themselves_or_counted(site: Site) -> None:
    await site.start(ALL_BY_CERTIFICATE)

    async def fail() -> None:
        stranger = await site.dial()
        async with asyncio.timeout(PATIENCE):
            assert (await stranger.wait_closed()).cause != "application"

    # Handshakes that succeed take no line from one that fails.
    cert = site.server.certificate(["agent.web.ztna"])
    await asyncio.gather(*(site.join(Role.AGENT, "web", cert=cert) for _ in range(40)))
    await fail()
    assert "certificate" in (await site.wait_decision("rejected", cause="handshake"))["reason"]

    begun = time.monotonic()
    await asyncio.gather(*(fail() for _ in range(120)))
    took = time.monotonic() - begun

    def written() -> tuple[int, int]:
        lines = [line for line in site.decisions("rejected") if line["cause"] == "handshake"]
        counted = [line["count"] for line in lines if "count" in line]
        return len(lines) - len(counted), sum(counted)

    async def all_of_them() -> bool:
        return sum(written()) == 121

    await until(all_of_them, "121 failed handshakes in the audit log")
    own, _ = written()
    assert own <= 1 + 10 + 10 * took
    assert await site.metric('ztna_handshakes_total{outcome="failed"}') == 121
    # Those of the last second are written as the server ends.
    begun = time.monotonic()
    await asyncio.gather(*(fail() for _ in range(40)))
    assert await site.server.terminate() == 0
    assert sum(written()) == 161


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


LEAKY = """
from intermediate_server.policy import Policy

class Unmade(Policy):
    def __init__(self):
        raise ConnectionError("postgres://relay:CANARY-7f3a@db")
    async def authorize(self, registration):
        pass

class Leaky(Policy):
    async def authorize(self, registration):
        raise ConnectionError("postgres://relay:CANARY-7f3a@db")
"""


async def test_no_secret_is_told_anywhere(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaky.py").write_text(LEAKY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    server = await site.start(ALL_BY_CERTIFICATE)
    cert = server.certificate(["agent.web.ztna"])
    canary = tmp_path / "canary"
    canary.write_text("CANARY-7f3a\n")
    canary.chmod(0o600)
    mistaken = ["crl", "deny-list", "ca-cert"]
    for setting in mistaken:
        for path in (canary, cert[1], site.state / "ca.key", site.state / "retry.key"):
            site.write(f'{setting} = "{path}"\n{ALL_BY_CERTIFICATE}')
            assert (await site.reload()).status_code == 422, (setting, path)
    for file in (canary, site.state / "reset.key"):
        site.write(f'cert = "{cert[0]}"\nkey = "{file}"\n{ALL_BY_CERTIFICATE}')
        assert (await site.reload()).status_code == 422
    site.config.write_bytes(cert[1].read_bytes())
    assert (await site.reload()).status_code == 422
    agent = await site.join(Role.AGENT, "web", cert=cert)
    with pytest.raises(RegistrationError):
        await agent.register(Role.CONNECTOR, "web")
    await site.wait_decision("denied")
    site.write('policy = "leaky:Unmade"\n')
    assert "raised ConnectionError at leaky.py" in (await site.reload()).json()["error"]
    told = [(await site.get("/readyz")).text]
    token = f'[callout]\nurl = "http://127.0.0.1:{free_port()}/"\ntoken-file = "{canary}"\n'
    for text, reason in ((token, "could not be asked"), ('policy = "leaky:Leaky"\n', "raised ConnectionError")):
        site.write(text)
        assert (await site.reload()).status_code == 200
        asking = asyncio.ensure_future((await site.dial(cert=cert)).register(Role.AGENT, "web"))
        await until(partial(_denied, site, reason), f"a denial because the policy {reason}")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    told += [(await site.get(path)).text for path in ("/readyz", "/metrics", "/anonymous", "/status")]
    told.append(Path(f"/proc/{server.process.pid}/cmdline").read_text())  # noqa: ASYNC240
    assert await server.terminate() == 0
    told += [site.audit.read_text(), *(str(line) for line in server.lines)]
    everything = "\n".join(told)
    assert "/canary" in everything, "the place of the mistake is told"
    secrets = ["CANARY-7f3a", "-----BEGIN"]
    for file in (cert[1], site.state / "ca.key", site.state / "server.key"):
        secrets += [line for line in file.read_text().splitlines() if not line.startswith("-")]
    for name in ("retry.key", "reset.key"):
        raw = (site.state / name).read_bytes()
        secrets += [raw.hex(), raw.hex(":"), base64.b64encode(raw).decode()[:40], repr(raw)[2:20]]
    assert not [secret for secret in secrets if secret in everything]


async def _denied(site: Site, reason: str) -> bool:
    return any(reason in line["reason"] for line in site.decisions("denied"))
