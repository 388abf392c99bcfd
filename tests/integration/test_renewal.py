"""Certificates that renew themselves between real programs, and what happens where they may not."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from intermediate_server.client import ClientEngine
from intermediate_server.client.join import ask, signing_request
from intermediate_server.client.options import ConnectOptions
from intermediate_server.client.profile import Draft, Profile
from intermediate_server.join.messages import Refused, Renew
from intermediate_server.pki import keys
from intermediate_server.testing import Agent, Connector, Program
from intermediate_server.testing.plugin import Programs, StartApplication
from intermediate_server.testing.programs import PATIENCE
from intermediate_server.types import Role
from tests.integration.client_programs import url
from tests.integration.packet_stream import PATIENT, packet_stream
from tests.integration.relaying import free_port
from tests.integration.server import Server
from tests.unit.issuing import Relays, joined

LATE = 1.0
"""Seconds for what was on its way back to this process, which others may keep from running."""


def expired_profile(state_dir: Path, path: Path) -> Profile:
    """A profile whose certificate expired a day ago, of a relay that starts later."""
    relays = Relays(state_dir, now=keys.utc_now() - timedelta(days=8))
    key_pem = keys.key_pem(keys.new_key())
    issued = joined(relays, keys.parse_key(key_pem, ""), role=Role.AGENT)
    return Profile.of(Draft(key_pem), replace(issued, servers=("127.0.0.1:1",)))


async def agent_of(relay: Server, profile: Profile, path: Path) -> Program:
    """An agent by this profile."""
    replace(profile, servers=(relay.server,)).save(path)
    socket = path.with_suffix(".sock")
    flags = ["--profile", str(path), "--log-format", "json", "--status-socket", str(socket)]
    return await Program.start("agent", *flags)


async def test_certificates_of_a_minute_renew_under_load_without_a_loss(
    programs: Programs, start_application: StartApplication, tmp_path: Path
) -> None:
    flags = ["--certificate-lifetime", "60s", "--connections-per-identity", "1", "--metrics-port", str(free_port())]
    relay: Server = await programs.keep(Server.begin(tmp_path / "relay", *flags))
    echo = await start_application("udp-echo")
    connector = await programs.keep(
        Connector.begin(relay, {"echo": url(echo, "udp")}, *PATIENT, profile=tmp_path / "connector.ztna")
    )
    agent = await programs.keep(Agent.begin(relay, [("udp", "echo")], *PATIENT, profile=tmp_path / "agent.ztna"))
    await relay.wait_metric("ztna_leases", 2)
    async with packet_stream(agent.addresses[0]) as stream:
        for client in (connector, agent):
            async with asyncio.timeout(3 * PATIENCE):
                while not any("Certificate renewed" in str(line["event"]) for line in client.lines):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            await client.wait_log("Registered as", count=2)
        await relay.wait_log("Connection closed", reason="replaced", count=2)
        await stream.wait_sent(500)
    assert stream.missing == [], (stream.refused, await agent.status(), await connector.status())
    assert await relay.metric("ztna_leases") == 2, "one inner address in each family, throughout"
    assert await relay.metric('ztna_renewals_total{outcome="ok"}') >= 2
    for name in ("agent", "connector"):
        assert Profile.load(tmp_path / f"{name}.ztna").leaf.not_valid_after_utc > keys.utc_now()


async def test_a_certificate_that_expired_yesterday_is_renewed_and_then_used(
    programs: Programs, tmp_path: Path
) -> None:
    profile = expired_profile(tmp_path / "relay", tmp_path / "agent.ztna")
    audit = tmp_path / "audit.log"
    relay: Server = await programs.keep(Server.begin(tmp_path / "relay", "--audit-log", str(audit)))
    agent = await programs.keep(agent_of(relay, profile, tmp_path / "agent.ztna"))
    await agent.wait_log("Registered as")
    said = [str(line["event"]) for line in agent.lines]
    renewed = next(number for number, text in enumerate(said) if text == "Certificate renewed")
    assert not any(text.startswith("Connected to") for text in said[:renewed])
    async with asyncio.timeout(PATIENCE):
        while "late-renew" not in audit.read_text() or "allowed" not in audit.read_text():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    entries = [json.loads(line) for line in audit.read_text().splitlines()]
    assert not [entry for entry in entries if entry.get("cause") == "expired"], "it never came with the expired one"
    assert Profile.load(tmp_path / "agent.ztna").key_pem == profile.key_pem


async def test_one_that_may_not_be_renewed_any_more_ends_the_agent(programs: Programs, tmp_path: Path) -> None:
    profile = expired_profile(tmp_path / "relay", tmp_path / "agent.ztna")
    relay: Server = await programs.keep(Server.begin(tmp_path / "relay", "--renew-grace", "0"))
    agent = await programs.keep(agent_of(relay, profile, tmp_path / "agent.ztna"))
    line = await agent.wait_log("our certificate has expired, and the relay does not renew it")
    async with asyncio.timeout(PATIENCE):
        assert await agent.process.wait() == 1
    assert "may be renewed no more; join again with a new token" in line["event"]


async def test_who_is_revoked_under_load_is_cut_at_once_and_renews_no_more(
    programs: Programs, start_application: StartApplication, tmp_path: Path
) -> None:
    relay: Server = await programs.keep(Server.begin(tmp_path / "relay"))
    echo = await start_application("udp-echo")
    await programs.keep(Connector.begin(relay, {"echo": url(echo, "udp")}, profile=tmp_path / "connector.ztna"))
    path = tmp_path / "agent.ztna"
    agent = await programs.keep(Agent.begin(relay, [("udp", "echo")], profile=path))
    async with packet_stream(agent.addresses[0], complete=False) as stream:
        await stream.wait_sent(500)
        async with await Program.start("revoke", "agent", "--state-dir", str(relay.state_dir)) as command:
            async with asyncio.timeout(PATIENCE):
                assert await command.process.wait() == 0
        await relay.wait_log("disconnected")
        cut = time.monotonic()
        await agent.wait_log("Connection lost")
    assert stream.last <= cut + LATE, "nothing comes back once the relay has cut it"
    async with ClientEngine() as engine:
        request = Renew(signing_request(Draft(Profile.load(path).key_pem)))
        answer = await ask(engine, ConnectOptions(profile=path), request)
    assert isinstance(answer, Refused)
    assert answer.cause == "revoked"
