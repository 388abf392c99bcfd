"""What netcheck says of networks as they are."""

from __future__ import annotations

import json
import sys
from ipaddress import ip_address
from typing import Any

import pytest

from intermediate_server.types import Role
from tests.e2e.field import RELAY_V4, RELAY_V6, Field

pytestmark = pytest.mark.timeout(300)


def check(field: Field, address: str = RELAY_V4) -> dict[str, Any]:
    """What it finds from the agent's host."""
    certificate, key = field.relay.issue(Role.AGENT, "checker", ["web"])
    host = f"[{address}]" if ip_address(address).version == 6 else address
    words = [sys.executable, "-m", "intermediate_server", "netcheck", "--json"]
    words += ["--server", f"{host}:{field.relay.address[1]}", "--server-name", "ztna-server"]
    words += ["--ca-cert", str(field.relay.ca_file), "--cert", str(certificate), "--key", str(key)]
    found: dict[str, Any] = json.loads(field.agent.run(*words))
    assert found["ok"], found
    return found


async def test_a_nat_that_changes_ports(field: Field) -> None:
    field.router.masquerade(field.middle_cable, (20_000, 20_100))
    await field.start_relay()
    found = check(field)["ipv4"]
    assert all(20_000 <= int(seen.removeprefix("10.2.0.1:")) <= 20_100 for seen in found["observed"])
    assert "it changes ports" in found["nat"]
    assert "cannot be told" in found["nat"]


async def test_a_nat_that_keeps_ports(field: Field) -> None:
    field.router.masquerade(field.middle_cable, (1_024, 65_535))
    await field.start_relay()
    found = check(field)["ipv4"]
    assert found["observed"] == [f"10.2.0.1:{port}" for port in found["local_ports"]]
    assert "it keeps ports" in found["nat"]


async def test_ipv6(field: Field) -> None:
    await field.start_relay(bind="::")
    found = check(field, RELAY_V6)
    assert found["ipv4"] is None
    assert found["ipv6"]["nat"] == "no NAT, seen as fd00:1::2"


@pytest.mark.parametrize("mtu", [1280, 1400])
async def test_a_narrow_path(field: Field, mtu: int) -> None:
    field.narrow(mtu)
    await field.start_relay()
    found = check(field)["ipv4"]
    # 1200 bytes are what QUIC falls back to; 28 are for the IP and UDP headers.
    assert 1200 <= found["mtu"] <= mtu - 28
