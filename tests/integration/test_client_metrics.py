"""What an agent and a connector say over HTTP."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from intermediate_server.client import metrics
from intermediate_server.client.metrics import exposition
from intermediate_server.errors import ConnectError
from intermediate_server.testing.plugin import StartAgent, StartApplication, StartConnector, StartRelay
from intermediate_server.testing.programs import PATIENCE
from tests.integration.client_programs import fetch, url
from tests.integration.commands import run
from tests.integration.site import free_port
from tests.integration.test_hosts import WITHOUT_IPV6

STATUS: dict[str, Any] = {"connected": True, "silent": False, "connects": 1, "services": {}}


def read(text: str) -> dict[tuple[str, str], float]:
    """Samples by name and label."""
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in families
        for sample in family.samples
    }


async def test_both_ends_and_a_relay_that_leaves(
    start_relay: StartRelay,
    start_connector: StartConnector,
    start_agent: StartAgent,
    start_application: StartApplication,
) -> None:
    relay = await start_relay()
    page = await start_application("http")
    ports = [free_port(), free_port()]
    named = ("--metrics-hosts", "connector", "--metrics-port", str(ports[0]))
    await start_connector(relay, {"web": url(page)}, *named)
    agent = await start_agent(relay, [("tcp", "web")], "--metrics-port", str(ports[1]))
    await fetch(agent.addresses[0])
    async with httpx.AsyncClient(timeout=PATIENCE) as client:
        for port in ports:
            answer = await client.get(f"http://127.0.0.1:{port}/metrics")
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            found = read(answer.text)
            assert found["ztna_client_connected", ""] == found["ztna_client_connects_total", ""] == 1
            assert found["ztna_client_service_up", "web"] == found["ztna_client_tunnel_tcp_opened_total", ""] == 1
            assert found["ztna_client_tunnel_drops_total", "link_full"] == 0
            assert 0 < found["ztna_client_rtt_seconds", ""] < PATIENCE
            assert found["ztna_client_certificate_end_timestamp_seconds", ""] > 1.7e9
            assert found["ztna_client_tunnel_bytes_out_total", ""] > 0
        here = f"http://127.0.0.1:{ports[1]}"
        assert (await client.get(f"{here}/healthz")).text == "ok\n"
        assert (await client.head(f"{here}/healthz")).content == b""
        for port, name, code in ((ports[0], "Connector:9090", 200), (ports[0], "x", 421), (ports[1], "connector", 421)):
            named_by = {"Host": name}
            assert (await client.get(f"http://127.0.0.1:{port}/healthz", headers=named_by)).status_code == code
        assert (await client.post(f"{here}/metrics")).status_code == 405
        assert (await client.get(f"{here}/")).status_code == 404
        await relay.terminate()
        async with asyncio.timeout(PATIENCE):
            while (await client.get(f"{here}/healthz")).status_code != 503:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert read((await client.get(f"{here}/metrics")).text)["ztna_client_connected", ""] == 0


async def test_a_taken_port_is_one_clear_line() -> None:
    async def status() -> dict[str, Any]:
        return STATUS

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConnectError) as refused:
            async with metrics.serving("127.0.0.1", port, (), status):
                pass
    assert str(refused.value) == (
        f"cannot serve metrics at 127.0.0.1 port {port}: Address already in use; name others with --metrics-port and"
        " --metrics-bind"
    )


def test_an_ipv6_address_without_ipv6_is_one_clear_line(tmp_path: Path) -> None:
    flags = ["agent", "--server", "127.0.0.1:1", "--no-verify-peer", "--forward", "tcp:127.0.0.1:0=web"]
    done = run(tmp_path, *flags, "--metrics-port", "9", "--metrics-bind", "::1", within=WITHOUT_IPV6)
    assert done.returncode == 1
    said = "error: cannot serve metrics at ::1 port 9: Address family not supported by protocol; name others"
    assert said in done.stderr


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.text(), max_size=4))
def test_services_are_read_back_whatever_they_are_called(services: dict[str, str]) -> None:
    found = read(exposition({**STATUS, "services": services}))
    assert {name for kind, name in found if kind == "ztna_client_service_up"} == set(services)


@given(st.binary(max_size=200))
async def test_any_head_gets_a_response(head: bytes) -> None:
    async def status() -> dict[str, Any]:
        return STATUS

    assert (await metrics._answer(head + b"\r\n\r\n", (), status)).startswith(b"HTTP/1.1 ")
