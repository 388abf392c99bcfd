"""The programs as services of systemd: what it is told, with a socket in its place."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from intermediate_server.testing import Agent, Application, Connector, Program, Relay
from intermediate_server.types import Role
from tests.integration.client_programs import url
from tests.integration.test_stuck_engine import engine_thread, hold
from tests.service_manager import Listener

BEAT = 0.4
"""Seconds of the watchdog."""


@pytest.fixture
def systemd(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """The service manager of every program that the test starts next."""
    with Listener(f"@ztna-test-{os.getpid()}-{tmp_path_factory.mktemp('n').name}") as listener:
        monkeypatch.setenv("NOTIFY_SOCKET", listener.address)
        monkeypatch.setenv("WATCHDOG_USEC", str(round(BEAT * 1e6)))
        yield listener


async def until(systemd: Listener, field: str) -> list[str]:
    return await asyncio.to_thread(systemd.until, field)


async def test_a_relay_tells_its_life(systemd: Listener, tmp_path: Path) -> None:
    async with await Relay.begin(tmp_path / "state") as relay:
        _, status = await until(systemd, "READY=1")
        assert status == f"STATUS=listening on 127.0.0.1:{relay.address[1]}; 0 connections, 0 services"
        assert await until(systemd, "WATCHDOG=1") == ["WATCHDOG=1"]
        relay.signal(signal.SIGHUP)
        [_, moment] = await until(systemd, "RELOADING=1")
        assert moment.startswith("MONOTONIC_USEC=")
        assert await until(systemd, "READY=1") == ["READY=1"]
        relay.signal(signal.SIGTERM)
        assert await until(systemd, "STOPPING=1") == ["STOPPING=1", "STATUS=draining"]
        await until(systemd, "EXTEND_TIMEOUT_USEC=10000000")


async def test_connections_and_services_are_in_the_status(systemd: Listener, tmp_path: Path) -> None:
    async with await Relay.begin(tmp_path / "state") as relay, await Application.begin("http") as page:
        text = f"STATUS=listening on 127.0.0.1:{relay.address[1]}; 2 connections, 1 services"
        async with (
            await Connector.begin(relay, {"web": url(page)}),
            await Agent.begin(relay, [("tcp", "web")]),
        ):
            await until(systemd, text)


@pytest.mark.parametrize("role", ["agent", "connector"])
async def test_a_client_tells_its_life(
    systemd: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET")  # the relay is no part of this
    async with await Relay.begin(tmp_path / "state") as relay, await Application.begin("http") as page:
        monkeypatch.setenv("NOTIFY_SOCKET", systemd.address)
        client: Program
        if role == "agent":
            client = await Agent.begin(relay, [("tcp", "web")])
        else:
            client = await Connector.begin(relay, {"web": url(page)})
        async with client:
            assert (await until(systemd, "READY=1"))[1] == "STATUS=connecting"
            connected = f"STATUS=connected to 127.0.0.1:{relay.address[1]}; 1 of 1 services registered"
            await until(systemd, connected)
            await until(systemd, "WATCHDOG=1")
            client.signal(signal.SIGHUP)
            await until(systemd, "RELOADING=1")
            await until(systemd, "READY=1")
            await relay.kill()
            while not (lost := (await asyncio.to_thread(systemd.message))[0]).startswith("STATUS=not connected: "):
                pass
            assert len(lost) > len("STATUS=not connected: ")
            client.signal(signal.SIGTERM)
            await until(systemd, "STOPPING=1")


async def test_a_client_is_ready_while_its_relay_is_away(systemd: Listener, tmp_path: Path) -> None:
    async with await Relay.begin(tmp_path / "state") as relay:
        certificate, key = relay.issue(Role.AGENT, "laptop", ["web"])
        address = "{}:{}".format(*relay.address)
    flags = ["agent", "--server", address, "--ca-cert", str(relay.ca_file), "--server-name", "ztna-server"]
    flags += ["--cert", str(certificate), "--key", str(key), "--forward", "tcp:127.0.0.1:0=web"]
    async with await Program.start(*flags, "--status-socket", str(tmp_path / "s")):
        await until(systemd, "READY=1")


async def test_the_watchdog_starves_while_the_engine_stands_still(systemd: Listener, tmp_path: Path) -> None:
    relay = await Relay.begin(tmp_path / "state")
    try:
        await until(systemd, "WATCHDOG=1")
        hold(engine_thread(relay.process.pid))
        await relay.wait_log("Engine failed")
        last = moment = 0.0
        fields: list[str] = []
        while "STOPPING=1" not in fields:
            last = moment if fields == ["WATCHDOG=1"] else last
            moment, fields = await asyncio.to_thread(systemd.timed)
        # It counts as standing still from the second look on, and is given up at the fifth.
        assert moment - last > 1.0
    finally:
        await relay.kill()
