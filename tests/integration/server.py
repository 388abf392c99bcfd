"""The real server as a process of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from intermediate_server.testing import Relay
from intermediate_server.testing.programs import PATIENCE
from intermediate_server.types import Role


class Server(Relay):
    """A relay that makes certificates by their names."""

    issued = 0

    def certificate(self, names: list[str]) -> tuple[Path, Path]:
        """A client certificate with these ``.ztna`` names, and its key."""
        self.issued += 1
        role = Role(names[0].split(".")[0])
        services = [name.removesuffix(".ztna").split(".", 1)[1] for name in names]
        return self.issue(role, f"peer-{self.issued}", services)

    async def samples(self, prefix: str) -> dict[str, float]:
        """The samples of its metrics whose names begin so, named as the exposition writes them."""
        line = await self.wait_log("Admin listening on")
        async with httpx.AsyncClient() as http:
            text = (await http.get(f"http://{line['host']}:{line['port']}/metrics")).text
        found = (line.rpartition(" ") for line in text.splitlines() if line.startswith(prefix))
        return {name: float(value) for name, _, value in found}

    async def metric(self, sample: str) -> float:
        """One sample of its metrics."""
        return (await self.samples(sample))[sample]

    async def wait_metric(self, sample: str, value: float) -> None:
        """Wait until a sample has reached ``value``."""
        async with asyncio.timeout(PATIENCE):
            while await self.metric(sample) < value:  # noqa: ASYNC110 - another process decides when
                await asyncio.sleep(0.02)
