"""How often an agent dials a relay that refuses it or was away, and what both write about it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from intermediate_server.client import ClientEngine
from intermediate_server.pki.authority import Authority
from intermediate_server.testing import Program
from intermediate_server.testing.plugin import Programs
from intermediate_server.types import Role
from tests.integration.conftest import PATIENCE, Server
from tests.integration.site import free_port

DIALS = 4
"""Dials of a relay that refuses: behind the first three are rests of 1, 2 and 4 s, each shortened by up to half."""


def options(server: Server, tmp_path: Path, cert: tuple[Path, Path] | None) -> list[str]:
    shown = [] if cert is None else ["--cert", str(cert[0]), "--key", str(cert[1])]
    return [
        *("--server", "{}:{}".format(*server.address), "--server-name", "ztna-server"),
        *("--ca-cert", str(server.ca_file), "--forward", "tcp:127.0.0.1:0=web", *shown),
        *("--status-socket", str(tmp_path / "s"), "--log-format", "json"),
    ]


def certificate(state: Path, tmp_path: Path, case: str) -> tuple[Path, Path] | None:
    """What an agent shows to the relay with this state: that of another CA, a revoked one, or none."""
    if case == "none":
        return None
    authority = Authority(state if case == "revoked" else tmp_path / "other")
    authority.init()
    issued = authority.issue(Role.AGENT, "laptop", services=["web"])
    if case == "revoked":
        authority.revoke("laptop")
    return authority.certificate_file(issued.name), authority.key_path(issued.name)


@pytest.mark.parametrize(
    ("case", "told", "logged"),
    [
        ("revoked", "client certificate revoked; see our certificate", "Connection of"),
        ("none", "it wants a client certificate; give --cert and --key", "Handshake failed with"),
        ("other CA", "(--cert) is not signed by a CA it trusts", "Handshake failed with"),
    ],
)
async def test_a_relay_that_refuses_us_is_dialled_less_and_less(
    programs: Programs, tmp_path: Path, case: str, told: str, logged: str
) -> None:
    cert = certificate(tmp_path / "relay", tmp_path, case)
    server = await programs.keep(Server.begin(tmp_path / "relay", "--metrics-port", str(free_port())))
    begun = time.monotonic()
    agent = await programs.keep(Program.start("agent", *options(server, tmp_path, cert)))
    async with asyncio.timeout(PATIENCE):
        while await dialled(server) < DIALS:  # noqa: ASYNC110  another process decides when
            await asyncio.sleep(0.02)
    assert time.monotonic() - begun >= (1 + 2 + 4) / 2
    events = [str(line["event"]) for line in agent.lines]
    assert events[0].startswith("Forwarding tcp ")
    assert events[1].startswith("Connecting to ")
    assert [event for event in events if "Connected" in event] == []
    refusals = [event for event in events if event.startswith("Not let in: ")]
    assert len(refusals) == 1
    assert told in refusals[0]
    assert len([line for line in server.lines if str(line["event"]).startswith(logged)]) == 1
    assert not any(str(line["event"]).startswith(("New conn", "Connection closed")) for line in server.lines)


class Hop:
    """A way to a relay that can swallow what enters it."""

    def __init__(self, remote: tuple[str, int]) -> None:
        self.remote = remote
        self.swallows = False
        self.swallowed: set[tuple[str, int]] = set()
        """Whose packets it swallowed."""
        self._ways: dict[tuple[str, int], socket.socket] = {}
        self._socket = _udp()
        self.address: tuple[str, int] = self._socket.getsockname()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._there)

    def close(self) -> None:
        for opened in (self._socket, *self._ways.values()):
            self._loop.remove_reader(opened)
            opened.close()

    def _there(self) -> None:
        data, peer = self._socket.recvfrom(2048)
        if self.swallows:
            self.swallowed.add(peer)
            return
        if peer not in self._ways:
            self._ways[peer] = _udp()
            self._loop.add_reader(self._ways[peer], self._back, peer)
        self._ways[peer].sendto(data, self.remote)

    def _back(self, peer: tuple[str, int]) -> None:
        with suppress(OSError):  # the port of a relay that was killed
            self._socket.sendto(self._ways[peer].recv(2048), peer)


def _udp() -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind(("127.0.0.1", 0))
    opened.setblocking(False)
    return opened


@pytest.fixture
def hops() -> Iterator[list[Hop]]:
    opened: list[Hop] = []
    yield opened
    for hop in opened:
        hop.close()


async def test_a_relay_that_comes_back_sees_one_handshake_of_each(
    programs: Programs, engine: ClientEngine, hops: list[Hop], tmp_path: Path
) -> None:
    server = await programs.keep(Server.begin(tmp_path / "relay"))
    hop = Hop(server.address)
    hops.append(hop)
    cert = server.certificate(["agent.web.ztna"])
    server.address = hop.address
    agent = await programs.keep(Program.start("agent", *options(server, tmp_path, cert)))
    await agent.wait_log("Registered as")
    hop.swallows = True
    await server.kill()
    back = await programs.keep(Server.begin(tmp_path / "relay", "--metrics-port", str(free_port())))
    async with asyncio.timeout(PATIENCE):
        while len(hop.swallowed) < 7:  # noqa: ASYNC110  another process decides when
            await asyncio.sleep(0.02)
    hop.remote, hop.swallows = back.address, False
    await agent.wait_log("Registered as", count=2)
    # Tries that went on would be heard of in the time that another takes to repeat itself twice.
    with _udp() as silent:
        clock = asyncio.ensure_future(engine.connect(silent.getsockname(), verify=False, handshake_timeout=600))
        async with asyncio.timeout(PATIENCE):
            for _ in range(3):
                await asyncio.get_running_loop().sock_recvfrom(silent, 2048)
        clock.cancel()
    assert 1 <= await dialled(back) <= 2


async def dialled(server: Server) -> int:
    """Handshakes that began at a server."""
    return int(await server.metric('ztna_connections_total{stage="accepted"}'))
