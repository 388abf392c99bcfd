"""Certificates of a minute that renew themselves under 1,000 packets/s: ``python -m tests.programs.renewals MINUTES``.

Ends with status 1 when a packet was lost, an inner address changed or a renewal failed.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from intermediate_server.testing import Agent, Application, Connector
from tests.integration.client_programs import url
from tests.integration.packet_stream import PATIENT, packet_stream
from tests.integration.relaying import free_port
from tests.integration.server import Server


async def main(minutes: float) -> int:
    """Run for so long; prints a line each minute."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ztna-renewals-")))
        flags = ["--certificate-lifetime", "60s", "--connections-per-identity", "1", "--metrics-port", str(free_port())]
        relay = await stack.enter_async_context(await Server.begin(directory / "relay", *flags))
        echo = await stack.enter_async_context(await Application.begin("udp-echo"))
        backends = {"echo": url(echo, "udp")}
        connector = await stack.enter_async_context(
            await Connector.begin(relay, backends, *PATIENT, profile=directory / "connector.ztna")
        )
        agent = await stack.enter_async_context(
            await Agent.begin(relay, [("udp", "echo")], *PATIENT, profile=directory / "agent.ztna")
        )
        await relay.wait_metric("ztna_leases", 2)
        begin = time.monotonic()
        async with packet_stream(agent.addresses[0]) as stream:
            while (passed := time.monotonic() - begin) < minutes * 60:
                await asyncio.sleep(min(60, minutes * 60 - passed))
                missing = stream.sent - len(stream.back)
                renewed = await relay.metric('ztna_renewals_total{outcome="ok"}')
                print(
                    f"{passed / 60:.1f} min: {stream.sent} sent, {missing} under way, {renewed:.0f} renewals",
                    flush=True,
                )
        renewals = await relay.samples("ztna_renewals_total")
        statuses = [await agent.status(), await connector.status()]
        connects = [status["connects"] for status in statuses]
        same = await relay.metric("ztna_leases") == 2
        print(
            f"{minutes:g} min: {stream.sent} packets ({stream.sent / minutes / 60:.0f}/s), {len(stream.missing)} lost,"
            f" {stream.repeated} twice, longest gap {stream.longest_gap * 1000:.0f} ms; connections {connects};"
            f" inner addresses {'the same' if same else 'CHANGED'}; {renewals}"
        )
    failed = sum(value for name, value in renewals.items() if "ok" not in name)
    return int(bool(stream.missing) or not same or failed > 0)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 30)))
