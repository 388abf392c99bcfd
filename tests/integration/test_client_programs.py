"""The agent, the connector and netcheck as programs, through a relay that is one too."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization

from intermediate_server.errors import ConnectError
from intermediate_server.pki import Authority, keys
from intermediate_server.testing import Agent, Program, Relay
from intermediate_server.testing.applications import PAGE
from intermediate_server.testing.plugin import Programs, StartAgent, StartApplication, StartConnector, StartRelay
from intermediate_server.testing.programs import PATIENCE
from intermediate_server.types import Role
from tests.integration.client_programs import echo_datagrams, fetch, fetch_until_served, run, trust, url
from tests.integration.site import free_port


async def test_two_services_over_one_connector(
    start_relay: StartRelay,
    start_connector: StartConnector,
    start_agent: StartAgent,
    start_application: StartApplication,
) -> None:
    relay = await start_relay()
    page, echo = await start_application("http"), await start_application("udp-echo")
    await start_connector(relay, {"web": url(page), "echo": url(echo, "udp")})
    agent = await start_agent(relay, [("tcp", "web"), ("udp", "echo")])
    assert await fetch(agent.addresses[0]) == PAGE
    await echo_datagrams(agent.addresses[1], bytes(1), bytes(1000))


async def test_one_service_of_both_protocols(
    start_relay: StartRelay,
    start_connector: StartConnector,
    start_agent: StartAgent,
    start_application: StartApplication,
) -> None:
    """As DNS has: the same name, the same ports of the agent, and what a datagram does not hold over TCP."""
    relay = await start_relay()
    stream, datagrams = await start_application("http"), await start_application("udp-echo")
    connector = await start_connector(relay, {"dns": f"{url(datagrams, 'udp')},{url(stream)}"})
    agent = await start_agent(relay, [("udp", "dns"), ("tcp", "dns")])
    assert await fetch(agent.addresses[1]) == PAGE
    await echo_datagrams(agent.addresses[0], b"question")
    assert (await connector.status())["backends"] == {"dns": [url(datagrams, "udp"), url(stream)]}


async def test_a_refused_backend_is_passed_over_and_the_last_resets(
    start_relay: StartRelay,
    start_connector: StartConnector,
    start_agent: StartAgent,
    start_application: StartApplication,
) -> None:
    relay = await start_relay()
    page = await start_application("http")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
    await start_connector(relay, {"web": f"{closed},{url(page)}", "none": closed})
    agent = await start_agent(relay, [("tcp", "web"), ("tcp", "none")])
    assert await fetch(agent.addresses[0]) == PAGE
    with pytest.raises((OSError, asyncio.IncompleteReadError)):
        await fetch(agent.addresses[1])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_both_ends_come_back_after_the_relay(
    start_connector: StartConnector,
    start_agent: StartAgent,
    start_application: StartApplication,
    programs: Programs,
    tmp_path: Path,
    how: signal.Signals,
) -> None:
    relay = await programs.keep(Relay.begin(tmp_path / "relay"))
    page = await start_application("http")
    connector = await start_connector(relay, {"web": url(page)})
    agent = await start_agent(relay, [("tcp", "web")])
    assert await fetch(agent.addresses[0]) == PAGE
    relay.signal(how)
    await relay.process.wait()
    for end in (agent, connector):
        await (end.wait_log("Connection lost") if how is signal.SIGTERM else end.wait_log("The relay is silent"))
    line = await agent.wait_log("refuses")
    assert line["reason"]
    # It asks the engine, which closed the ports before.
    told = await agent.status()
    assert told["silent"] or not told["connected"]
    # At once, and not by the patience of who waits.
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await fetch(agent.addresses[0])
    back = await programs.keep(Relay.begin(tmp_path / "relay", port=relay.address[1]))
    reachable = time.monotonic()
    for end in (agent, connector):
        await end.wait_log("Registered as", count=2)
    took = time.monotonic() - reachable
    print(f"registered again {took:.2f} s after the relay listened")
    # Two seconds by design; the rest is for a host that does other things too.
    assert took < 5
    await fetch_until_served(agent.addresses[0])
    assert back.address == relay.address


async def test_a_relay_that_is_back_before_it_was_missed(
    start_connector: StartConnector, start_agent: StartAgent, programs: Programs, tmp_path: Path
) -> None:
    relay = await programs.keep(Relay.begin(tmp_path / "relay"))
    ends = [await start_connector(relay, {"web": "tcp://127.0.0.1:1"}), await start_agent(relay, [("tcp", "web")])]
    await relay.kill()
    await programs.keep(Relay.begin(tmp_path / "relay", port=relay.address[1]))
    reachable = time.monotonic()
    for end in ends:
        await end.wait_log("Registered as", count=2)
    took = time.monotonic() - reachable
    print(f"registered again {took:.2f} s after the relay listened")
    # As above; it shares no secret with the one before it, so nothing but silence tells that it is another.
    assert took < 5


async def test_what_is_refused_is_said_and_asked_again(
    start_relay: StartRelay, programs: Programs, tmp_path: Path
) -> None:
    relay = await start_relay()
    options = trust(relay, Role.AGENT, "eve", ["web"])
    path = tmp_path / "s"
    agent = await programs.keep(
        Agent.start(
            *("agent", *options, "--forward", "tcp:127.0.0.1:0=db", "--log-format", "json"),
            "--status-socket",
            str(path),
        )
    )
    agent.socket = path
    line = await agent.wait_log("Not registered as agent for service 'db'")
    assert f"none of the names in {options[options.index('--cert') + 1]} (agent.web.ztna) grants it" in line["reason"]
    told = await agent.status()
    assert told["services"] == {"db": "refused"}
    with pytest.raises((OSError, asyncio.IncompleteReadError)):
        await fetch(told["local"][0])


async def test_status(
    start_relay: StartRelay,
    start_connector: StartConnector,
    start_agent: StartAgent,
    start_application: StartApplication,
) -> None:
    relay = await start_relay()
    page = await start_application("http")
    connector = await start_connector(relay, {"web": url(page)})
    agent = await start_agent(relay, [("tcp", "web")])
    assert await fetch(agent.addresses[0]) == PAGE
    used = await agent.status()
    assert used["received_bytes"] > len(PAGE)
    assert used["sent_bytes"] > 100, "the request and its acknowledgements"
    assert stat.S_IMODE(connector.socket.stat().st_mode) == 0o600
    code, text = await run("connector", "status", "--status-socket", str(connector.socket), "--json")
    told: dict[str, Any] = json.loads(text)
    assert code == 0
    assert told["connected"] is True
    assert told["services"] == {"web": "registered"}
    assert told["observed_address"] == told["observed_address_frame"]
    assert told["mtu"] >= 1200
    assert told["rtt_ms"] > 0
    assert told["sent_bytes"] > len(PAGE)
    code, text = await run("connector", "status", "--status-socket", str(connector.socket))
    assert "web registered" in text
    code, text = await run("agent", "status", "--status-socket", str(connector.socket.with_name("none")))
    assert code == 1
    assert "nothing runs at" in text


async def test_a_second_one_is_refused_and_a_stale_socket_replaced(
    start_relay: StartRelay, start_agent: StartAgent, programs: Programs
) -> None:
    relay = await start_relay()
    first = await start_agent(relay, [("tcp", "web")])
    options = trust(relay, Role.AGENT, "second", ["web"])
    options += ["--forward", "tcp:127.0.0.1:0=web", "--status-socket", str(first.socket), "--log-format", "json"]
    code, text = await run("agent", *options)
    assert code == 1
    assert "another one runs" in text
    await first.kill()
    assert first.socket.is_socket(), "what a killed one leaves"
    second = await programs.keep(Agent.start("agent", *options))
    second.socket = first.socket
    await second.wait_registered()
    assert (await second.status())["connected"] is True


async def test_where_it_is_seen_is_logged_once(start_relay: StartRelay, start_agent: StartAgent) -> None:
    agent = await start_agent(await start_relay(), [("tcp", "web")])
    status = await agent.status()
    async with asyncio.timeout(PATIENCE):
        # The relay says it in two forms.
        while not (status["observed_address"] and status["observed_address_frame"]):
            await asyncio.sleep(0.02)
            status = await agent.status()
    logged = [line["event"] for line in agent.lines if "Observed at" in str(line["event"])]
    assert logged == [f"Observed at {status['observed_address']}"]


async def test_a_certificate_that_ends_soon_is_told_at_both_sides(start_relay: StartRelay, tmp_path: Path) -> None:
    relay = await start_relay("--metrics-port", str(free_port()))
    authority = Authority(relay.state_dir)
    then = keys.utc_now() - timedelta(days=100)
    issued = authority.issue(Role.AGENT, "short", services=["web"], days=129, now=then)
    certificate, key = authority.certificate_file(issued.name), authority.key_path(issued.name)
    config = tmp_path / "agent.toml"
    config.write_text(
        f'server = "{relay.address[0]}:{relay.address[1]}"\nserver-name = "ztna-server"\nca-cert = "{relay.ca_file}"\n'
        f'cert = "{certificate}"\nkey = "{key}"\nforward = ["tcp:127.0.0.1:0=web"]\nstatus-socket = "{tmp_path}/s"\n'
    )
    program = await Program.start("agent", "--config", str(config), "--log-format", "json")
    try:
        line = await program.wait_log("Our certificate ends in 28 days")
        assert str(certificate) in line["event"]
        line = await relay.wait_log("A client's certificate ends in 28 days")
        assert (line["level"], "short" in str(line)) == ("warning", True)
        day = line["until"]
        listening = await relay.wait_log("Admin listening on")
        async with httpx.AsyncClient() as http:
            status = (await http.get(f"http://{listening['host']}:{listening['port']}/status")).json()
        assert [client["certificate_ends"] for client in status["clients"]["clients"]] == [day]
        code, said = await run("agent", "status", "--status-socket", f"{tmp_path}/s", "--json")
        assert (code, json.loads(said)["certificate_ends"]) == (0, day)
    finally:
        await program.terminate()


async def test_the_end_is_clean(start_relay: StartRelay, start_agent: StartAgent) -> None:
    relay = await start_relay()
    agent = await start_agent(relay, [("tcp", "web")])
    agent.signal(signal.SIGTERM)
    assert await agent.process.wait() == 0
    assert not agent.socket.exists()
    with pytest.raises(ConnectError):
        await agent.status()
    await relay.wait_log("Connection closed", reason="the agent ends")


async def test_settings_come_from_file_and_variables(start_relay: StartRelay, tmp_path: Path) -> None:
    relay = await start_relay()
    certificate, key = relay.issue(Role.AGENT, "file", ["web"])
    config = tmp_path / "agent.toml"
    config.write_text(
        f'server = "{relay.address[0]}:{relay.address[1]}"\nserver-name = "ztna-server"\nca-cert = "{relay.ca_file}"\n'
        f'cert = "{certificate}"\nkey = "{key}"\nforward = ["tcp:127.0.0.1:0=web"]\nstatus-socket = "{tmp_path}/s"\n'
    )
    program = await Program.start("agent", "--config", str(config), env={**os.environ, "ZTNA_AGENT_LOG_FORMAT": "json"})
    line = await program.wait_log("Registered as agent for service 'web'")
    assert line["level"] == "info"
    assert await program.terminate() == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--forward", "tcp:127.0.0.1:0=web", "--ca-cert", "x"], "server is not set"),
        (["--forward", "tcp:127.0.0.1:0=web", "--profile", "/x/y"], "there is no profile at /x/y"),
        (["--server", "127.0.0.1", "--no-verify-peer"], "an agent needs a service"),
        (["--server", "127.0.0.1", "--no-verify-peer", "--forward", "8080=web"], "is not a forward such as"),
        (["--server", "127.0.0.1", "--forward", "tcp:127.0.0.1:0=web"], "ca-cert is not set"),
        (["--server", "127.0.0.1", "--no-verify-peer", "--service", "web"], "needs a way in"),
        (["--server", "127.0.0.1", "--cert", "x", "--no-verify-peer"], "cert and key belong together"),
    ],
)
async def test_wrong_settings_say_what_to_do(arguments: list[str], told: str) -> None:
    code, text = await run("agent", *arguments)
    assert code == 2
    assert told in text


async def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text('serveer = "127.0.0.1"\n')
    code, text = await run("agent", "--config", str(config))
    assert code == 2
    assert "did you mean server?" in text


@pytest.mark.parametrize("what", ["name", "ca"])
async def test_a_relay_that_cannot_be_trusted(
    start_relay: StartRelay, programs: Programs, tmp_path: Path, what: str
) -> None:
    relay = await start_relay()
    options = trust(relay, Role.AGENT, "me", ["web"])
    options += ["--forward", "tcp:127.0.0.1:0=web", "--status-socket", str(tmp_path / "s"), "--log-format", "json"]
    if what == "name":
        options[options.index("ztna-server")] = "somebody.example"
        told = "the relay's certificate is not for somebody.example; it is for ztna-server, "
    else:
        other = await start_relay()
        options[options.index(str(relay.ca_file))] = str(other.ca_file)
        told = f"the relay's certificate is not signed by a CA in {other.ca_file} (--ca-cert)"
    agent = await programs.keep(Program.start("agent", *options))
    line = await agent.wait_log("Cannot connect")
    assert line["reason"].startswith(told)
    assert line["reason"].endswith((": dial one of these or set --server-name", "(--ca-cert)"))
    failed = await relay.wait_log("Handshake failed with 127.0.0.1")
    assert failed["reason"].startswith("it refuses the server's certificate or TLS (alert ")


@pytest.mark.parametrize("program", ["agent", "connector", "netcheck"])
@pytest.mark.parametrize("wrong", ["missing", "encrypted", "of another", "text"])
async def test_a_key_that_cannot_be_used_ends_it_with_one_line(
    start_relay: StartRelay, tmp_path: Path, program: str, wrong: str
) -> None:
    relay = await start_relay()
    options = trust(relay, Role.CONNECTOR if program == "connector" else Role.AGENT, "me", ["web"])
    key = tmp_path / "wrong.key"
    if wrong == "encrypted":
        private = keys.load_key(Path(options[options.index("--key") + 1]))
        encrypted = serialization.BestAvailableEncryption(b"secret")
        key.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encrypted))
    elif wrong == "of another":
        key = relay.issue(Role.AGENT, "other", ["web"])[1]
    elif wrong == "text":
        key.write_text("no key")
    if key.exists():
        key.chmod(0o600)
    options[options.index("--key") + 1] = str(key)
    if program != "netcheck":
        options += ["--status-socket", str(tmp_path / "s")]
        options += {"agent": ["--forward", "tcp:127.0.0.1:0=web"], "connector": ["--service", "web=tcp://127.0.0.1:1"]}[
            program
        ]
    code, text = await run(program, *options)
    assert code == 2, text
    assert len(text.splitlines()) == 1, text
    assert str(key) in text
