"""An address of the user's choice that stands for a service."""

from __future__ import annotations

from pathlib import Path

import pytest

from intermediate_server.types import Address
from tests.e2e.field import Field
from tests.e2e.tunnel import MEGABYTE, PORT, Site, download, ping, tun_agent, web

pytestmark = pytest.mark.timeout(300)

MAPPED = ("10.100.0.2", "fd00:100::2")


@pytest.mark.parametrize("written", ["flags", "file"])
async def test_a_mapped_address_leads_to_its_service_and_back(field: Field, tmp_path: Path, written: str) -> None:
    maps = [f"{address}=web" for address in MAPPED]
    if written == "flags":
        flags = [word for text in maps for word in ("--map", text)]
    else:
        config = tmp_path / "agent.toml"
        config.write_text(f"map = {maps}")
        flags = ["--config", str(config)]
    site = Site(field, tmp_path, field.connector)
    await field.start_relay()
    await site.serve_file(MEGABYTE)
    await site.connect("--tun")
    await tun_agent(field, field.agent, *flags)
    for address in MAPPED:
        await ping(field.agent, address)
        await download(field.agent, tmp_path / "got", site.checksum, address=str(Address.of((address, PORT))))


async def test_what_an_agent_says_of_addresses_and_of_a_missing_connector(field: Field, tmp_path: Path) -> None:
    site = Site(field, tmp_path, field.connector)
    await field.start_relay()
    await site.serve_file(MEGABYTE)
    agent = await tun_agent(field, field.agent, "--map", "10.100.0.2=web")
    await agent.wait_log(f"Service 'web' has the addresses 10.100.0.2 and {web(6)}")
    await agent.wait_log("Service 'web' has no connector at the relay")
    told = await agent.status()
    assert told["services"] == {"web": "registered, no connector"}
    assert told["addresses"] == {"web": ["10.100.0.2", web(6)]}
    await site.connect("--tun")
    await agent.wait_log("Service 'web' has a connector again")
    assert (await agent.status())["services"] == {"web": "registered"}
    await ping(field.agent, "10.100.0.2")
