"""New certificates under 1,000 packets/s: none is lost, and the agent keeps its inner address."""

from __future__ import annotations

from pathlib import Path

import pytest

from intermediate_server.pki import Authority
from intermediate_server.testing import Agent, Connector, Program
from intermediate_server.testing.plugin import Programs, StartAgent, StartApplication, StartConnector
from intermediate_server.types import Role
from tests.integration.client_programs import url
from tests.integration.packet_stream import PATIENT, packet_stream
from tests.integration.relaying import free_port
from tests.integration.server import Server

RENEWALS = 2


def flag(program: Program, name: str) -> Path:
    """The file that a program was started with."""
    flags = (Path("/proc") / str(program.process.pid) / "cmdline").read_text().split("\0")
    return Path(flags[flags.index(name) + 1])


@pytest.mark.parametrize("mode", ["auto", "off"])
async def test_a_renewed_certificate_is_taken_over_without_a_loss(
    programs: Programs,
    start_agent: StartAgent,
    start_connector: StartConnector,
    start_application: StartApplication,
    tmp_path: Path,
    mode: str,
) -> None:
    flags = ["--inner-addresses", mode, "--connections-per-identity", "1", "--metrics-port", str(free_port())]
    relay: Server = await programs.keep(Server.begin(tmp_path / "relay", *flags))
    echo = await start_application("udp-echo")
    connector: Connector = await start_connector(relay, {"echo": url(echo, "udp"), "other": url(echo, "udp")}, *PATIENT)
    agent: Agent = await start_agent(relay, [("udp", "echo"), ("udp", "other")], *PATIENT)
    authority = Authority(relay.state_dir)
    if mode == "auto":
        await relay.wait_metric("ztna_leases", 2)
    async with packet_stream(agent.addresses[0]) as stream, packet_stream(agent.addresses[1]) as other:
        await stream.wait_sent(1_000)
        for number in range(RENEWALS):
            for client, name in ((agent, "agent"), (connector, "connector")):
                authority.renew(name)
                await client.wait_log("Registered as", count=2 * (number + 2))
                await relay.wait_log(
                    "Connection closed", reason="replaced", count=2 * number + 1 + (client is connector)
                )
                await stream.wait_sent(1_000)
    if stream.missing or other.missing:
        dropped = {name: value for name, value in (await relay.samples("ztna_dropped")).items() if value}
        said = [(await client.status()) for client in (agent, connector)]
        pytest.fail(f"{stream.missing} {other.missing} {dropped} {said}")
    assert stream.repeated == other.repeated == 0
    if mode == "auto":
        assert await relay.metric("ztna_leases") == 2, "one inner address in each family, throughout"
    for client in (agent, connector):
        status = await client.status()
        assert status["connects"] == RENEWALS + 1
        assert not any(count for name, count in status["tunnel"].items() if name.startswith("drop_")), status


async def test_a_pair_that_does_not_fit_waits_for_its_other_half(
    programs: Programs, start_agent: StartAgent, tmp_path: Path
) -> None:
    relay: Server = await programs.keep(Server.begin(tmp_path / "relay"))
    agent: Agent = await start_agent(relay, [("tcp", "web")])
    cert, key = flag(agent, "--cert"), flag(agent, "--key")
    new_cert, new_key = relay.issue(Role.AGENT, "other", ["web"])
    before = key.read_bytes()
    cert.write_bytes(new_cert.read_bytes()[:100])
    await agent.wait_log("The new certificate and key wait until they fit each other")
    cert.write_bytes(new_cert.read_bytes())
    fresh = tmp_path / "fresh.key"
    fresh.write_bytes(new_key.read_bytes())
    fresh.chmod(0o600)
    fresh.replace(key)
    await agent.wait_log("Registered as", count=2)
    await relay.wait_log("Connection closed", reason="replaced")
    assert key.read_bytes() != before
    said = [line["event"] for line in agent.lines if "wait until they fit" in str(line["event"])]
    assert len(said) == 1
    assert (await agent.status())["connects"] == 2
