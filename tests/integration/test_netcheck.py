"""``netcheck`` as a program."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from intermediate_server.testing.plugin import StartApplication, StartConnector, StartRelay
from intermediate_server.types import Role
from tests.integration.client_programs import run, trust, url


async def test_netcheck(
    start_relay: StartRelay, start_connector: StartConnector, start_application: StartApplication
) -> None:
    relay = await start_relay()
    await start_connector(relay, {"web": url(await start_application("http"))})
    options = trust(relay, Role.AGENT, "checker", ["web"])
    code, text = await run("netcheck", *options, "--agent", "web")
    assert code == 0
    assert text.splitlines()[-1].startswith("reachable: round trip")
    assert "no NAT, seen as 127.0.0.1" in text
    # Its probes are dropped there, and are no trouble of the relay.
    await relay.wait_log("Dropped", level="info")
    assert [line for line in relay.lines if line["level"] == "warning"] == []
    code, text = await run("netcheck", *options, "--agent", "db", "--json")
    told = json.loads(text)
    assert code == 1
    assert told["ipv4"]["reachable"] is True
    assert told["ipv4"]["mtu"] >= 1200
    assert len(told["ipv4"]["observed"]) == 2
    assert all(
        int(seen.rpartition(":")[2]) == port
        for seen, port in zip(told["ipv4"]["observed"], told["ipv4"]["local_ports"], strict=True)
    ), told["ipv4"]
    assert "the relay's certificate is good until" in told["clock"]
    assert "our certificate is good until" in told["clock"]
    assert "refused as agent for service 'db'" in told["registration"]
    assert "(agent.web.ztna) grants it" in told["registration"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        options[1] = f"127.0.0.1:{silent.getsockname()[1]}"
        code, text = await run("netcheck", *options)
    assert code == 1
    assert text.splitlines()[-1].startswith("not reachable:")


async def test_netcheck_without_the_certificate_that_is_required(start_relay: StartRelay) -> None:
    relay = await start_relay()
    server = "{}:{}".format(*relay.address)
    code, text = await run(
        *("netcheck", "--server", server, "--server-name", "ztna-server", "--ca-cert", str(relay.ca_file))
    )
    assert code == 1
    assert "certificate" in text.splitlines()[-1]
    assert "None" not in text


async def test_netcheck_tries_every_address_of_a_name(start_relay: StartRelay, tmp_path: Path) -> None:
    """Of two addresses in one family, the first of which is closed, the second is found."""
    relay = await start_relay()
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import socket\nreal = socket.getaddrinfo\n"
        "def getaddrinfo(host, port, *args, **options):\n"
        "    if host != 'relay.example': return real(host, port, *args, **options)\n"
        "    return [(socket.AF_INET, 2, 17, '', (each, port)) for each in ('127.0.0.9', '127.0.0.1')]\n"
        "socket.getaddrinfo = getaddrinfo\n"
    )
    options = trust(relay, Role.AGENT, "checker", ["web"])
    options[1] = f"Relay.Example.:{relay.address[1]}"
    code, text = await run("netcheck", *options, "--json", env={"PYTHONPATH": str(site)})
    told = json.loads(text)
    assert code == 0, text
    assert told["ipv4"]["address"] == "127.0.0.1"
    assert told["ipv4"]["unreachable"] == {"127.0.0.9": f"nothing listens on UDP port {relay.address[1]} of 127.0.0.9"}


async def test_netcheck_asks_about_udp_only_where_nothing_answered(start_relay: StartRelay) -> None:
    relay = await start_relay()
    options = trust(relay, Role.AGENT, "checker", ["web"])
    hint = "is UDP to this port let through"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        options[1] = f"127.0.0.1:{silent.getsockname()[1]}"
        _, text = await run("netcheck", *options)
        assert hint in text.splitlines()[-1]
    _, text = await run("netcheck", *options)
    assert text.splitlines()[-1].startswith("not reachable: nothing listens on UDP port ")
    options[1] = "{}:{}".format(*relay.address)
    options[options.index("ztna-server")] = "somebody.example"
    _, text = await run("netcheck", *options)
    assert text.splitlines()[-1].startswith("reachable, but the relay's certificate is not for somebody.example;")


async def test_netcheck_takes_the_profile_of_this_host(tmp_path: Path) -> None:
    async def missed(*options: str) -> str:
        code, text = await run("netcheck", *options, env={"STATE_DIRECTORY": str(tmp_path)})
        assert code == 2
        return text

    assert f"there is no profile at {tmp_path}/agent.ztna; make one with: intermediate-server join" in await missed()
    assert f"there is no profile at {tmp_path}/connector.ztna" in await missed("--connector", "web")
    (tmp_path / "connector.ztna").write_text("damaged")
    (tmp_path / "connector.ztna").chmod(0o600)
    assert f"profile {tmp_path}/connector.ztna is damaged" in await missed()
    assert f"there is no profile at {tmp_path}/agent.ztna" in await missed("--agent", "web")
