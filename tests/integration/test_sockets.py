"""Sockets that outlive the relay: handed over by a socket unit, or kept by systemd over a restart."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from intermediate_server.client import connect
from intermediate_server.testing import Agent, Application, Connector, Program, Relay
from tests.integration.client_programs import echo_datagrams, url
from tests.integration.commands import PATIENCE
from tests.service_manager import Listener

RATE = 1_000
"""Packets a second at a relay that restarts."""


@pytest.fixture
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    with Listener(f"@ztna-test-{os.getpid()}-{tmp_path_factory.mktemp('n').name}") as listener:
        yield listener


@asynccontextmanager
async def as_service(systemd: Listener, state: Path, sockets: dict[str, int], *, port: int = 0) -> AsyncIterator[Relay]:
    """A relay that systemd has started with these sockets."""
    within = ["env", f"NOTIFY_SOCKET={systemd.address}", *systemd.starting(sockets)]
    async with await Relay.begin(state, port=port, within=within) as relay:
        yield relay


class Sender:
    """Sends to a port all the time, and counts how often it hears that the port is closed. Use as ``with``."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sent = 0
        self.refused = 0
        self._over = threading.Event()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(address)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        begun = time.monotonic()
        while not self._over.wait(1 / RATE):
            # A thread that had to wait makes up for it.
            while self.sent + self.refused < (time.monotonic() - begun) * RATE:
                try:
                    self._socket.send(bytes(1200))
                    self.sent += 1
                except ConnectionRefusedError:
                    self.refused += 1


async def echo_until_served(address: str) -> None:
    """Until the agent knows that the connector is back too, its port refuses."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await echo_datagrams(address, b"after")
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)


async def test_a_sender_hears_of_a_restart_where_nobody_keeps_the_socket(tmp_path: Path) -> None:
    """The other tests prove nothing without this one."""
    async with await Relay.begin(tmp_path / "state") as relay:
        address = relay.address
        with Sender(address) as sender:
            await relay.terminate()
            async with asyncio.timeout(PATIENCE):
                while sender.refused == 0:  # noqa: ASYNC110 - a thread counts
                    await asyncio.sleep(0.01)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_a_restart_under_load_is_not_noticed(systemd: Listener, tmp_path: Path, end: signal.Signals) -> None:
    async with as_service(systemd, tmp_path / "state", {}) as relay, await Application.begin("udp-echo") as echo:
        address = relay.address
        [name] = systemd.stored
        assert name == "udp-127.0.0.1-0"
        async with (
            await Connector.begin(relay, {"echo": url(echo, "udp")}) as connector,
            await Agent.begin(relay, [("udp", "echo")]) as agent,
        ):
            await echo_datagrams(agent.addresses[0], b"before")
            with Sender(address) as sender:
                relay.signal(end)
                await relay.process.wait()
                begun = time.monotonic()
                async with as_service(systemd, tmp_path / "state", systemd.stored) as other:
                    up = time.monotonic()
                    assert other.address == address
                    await asyncio.gather(*(each.wait_log("Registered as", count=2) for each in (agent, connector)))
                    back = time.monotonic()
                    await echo_until_served(agent.addresses[0])
                    assert sender.sent > 0
                    assert sender.refused == 0
                    print(f"start {up - begun:.2f} s, then back after {back - up:.2f} s, {sender.sent} packets")
            for each in (agent, connector):
                assert not any("nothing listens" in str(line.get("reason")) for line in each.lines), "an ICMP error"


async def test_a_socket_unit_says_where_to_listen(systemd: Listener, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unit:
        unit.bind(("127.0.0.1", 0))
        with socket.socket() as no_use:
            sockets = {"quic": unit.fileno(), "other": no_use.fileno()}
            async with as_service(systemd, tmp_path / "state", sockets, port=1) as relay:
                assert relay.address == unit.getsockname()
                await relay.wait_log("is no UDP socket and not used", descriptor=4)
                assert systemd.stored == {}, "it is kept by its unit"


async def test_a_kept_socket_of_another_address_is_given_back(systemd: Listener, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as kept:
        kept.bind(("127.0.0.1", 0))
        async with as_service(systemd, tmp_path / "state", {"udp-127.0.0.1-4433": kept.fileno()}) as relay:
            assert relay.address != kept.getsockname()
            await asyncio.to_thread(systemd.until, "FDNAME=udp-127.0.0.1-4433")


async def test_a_taken_port_names_the_remedy(systemd: Listener, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        flags = ["serve", "--bind", "127.0.0.1", "--port", port, "--metrics-port", "0", "--log-format", "json"]
        within = ["env", f"NOTIFY_SOCKET={systemd.address}"]
        async with await Program.start(*flags, "--state-dir", str(tmp_path / "state"), within=within) as server:
            line = await server.wait_log("Server failed to start")
            assert line["reason"] == (
                f"cannot bind 127.0.0.1:{port}: Address already in use (os error 98); "
                "another program has it, a relay perhaps; name another port with --port"
            )


async def test_started_by_the_first_packet(tmp_path: Path) -> None:
    """systemd's own tool in the place of a socket unit."""
    activate = shutil.which("systemd-socket-activate")
    if activate is None:
        pytest.skip("systemd-socket-activate is not installed")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        host, port = free.getsockname()
    flags = ["serve", "--state-dir", str(tmp_path / "state"), "--metrics-port", "0", "--log-format", "json"]
    within = [activate, "--datagram", f"--listen={host}:{port}"]
    async with await Program.start(*flags, "--client-auth", "optional", within=within) as server:
        await server.wait_log("Listening on")
        with Sender((host, port)):
            await server.wait_log("Server listening on", address=f"{host}:{port}")
        async with connect(f"{host}:{port}", ca_file=tmp_path / "state" / "ca.pem", server_name="ztna-server") as agent:
            await agent.wait_observed()
