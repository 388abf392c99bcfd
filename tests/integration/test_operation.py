"""What those who run the server rely on, such as the texts of its log."""

from __future__ import annotations

from pathlib import Path

from intermediate_server.client import ClientEngine, connect
from intermediate_server.testing.programs import Program
from intermediate_server.types import Role
from tests.integration.packets import udp_packet
from tests.integration.relaying import APPLICATION, INNER, received


async def test_the_texts_that_scripts_look_for(tmp_path: Path, engine: ClientEngine) -> None:
    flags = ["--bind", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--state-dir", str(tmp_path)]
    flags += ["--client-auth", "optional", "--log-format", "console", "--log-level", "debug"]
    async with await Program.start("serve", *flags) as server:
        listening = await server.wait_log("Server listening on 127.0.0.1:")
        address = str(listening["event"]).split("Server listening on ")[1].split()[0]
        async with connect(address, ca_file=tmp_path / "ca.pem", server_name="ztna-server") as agent:
            observed = await agent.wait_observed()
            await server.wait_log(f"New connection from {observed}")
            await server.wait_log(f"Sent QAD to {observed}")
            await agent.register(Role.AGENT, "web")
            await server.wait_log("Registration: Agent for service 'web'")
            connector = await engine.connect(address, ca_file=tmp_path / "ca.pem", server_name="ztna-server")
            await connector.register(Role.CONNECTOR, "web")
            await server.wait_log("Registration: Connector for service 'web'")
            packet = udp_packet(INNER, APPLICATION, b"some bytes")
            agent.send(packet)
            await received(connector)
            line = await server.wait_log(f"Relayed {len(packet)} bytes")
            assert " debug " in str(line["event"])
        await server.wait_log("Connection closed")
    assert not any("panic" in str(line["event"]) for line in server.lines)
