"""What systemd is told, with a socket in its place."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.service_manager import Listener

from intermediate_server.notify import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    with Listener(
        str(tmp_path / "n") if request.param == "path" else f"@ztna-test-{os.getpid()}-{time.time_ns()}"
    ) as it:
        yield it


def test_ready_status_and_stopping(listener: Listener) -> None:
    env = {"NOTIFY_SOCKET": listener.address, "OTHER": "1"}
    manager = ServiceManager.from_environment(env)
    assert env == {"OTHER": "1"}, "programs that we start are not the service"
    manager.ready("listening on [::]:4433")
    assert listener.message() == ["READY=1", "STATUS=listening on [::]:4433"]
    manager.status("listening on [::]:4433")
    manager.status("3 connections")
    assert listener.message() == ["STATUS=3 connections"]
    manager.stopping("draining")
    assert listener.message() == ["STOPPING=1", "STATUS=draining"]
    with manager.reloading():
        pass
    assert listener.nothing_waits(), "an end is not taken back"


def test_a_reload_is_told_with_its_moment(listener: Listener) -> None:
    manager = ServiceManager(listener.address)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    with pytest.raises(ValueError, match="bad file"), manager.reloading():
        first, moment = listener.message()
        raise ValueError("bad file")
    assert first == "RELOADING=1"
    assert before <= int(moment.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert listener.message() == ["READY=1"]


def test_no_text_adds_a_field(listener: Listener) -> None:
    ServiceManager(listener.address).status("lost: \nREADY=1\0" + "x" * 9000)
    [line] = listener.message()
    assert line.startswith("STATUS=lost:  READY=1 x")
    assert len(line) < 600


async def test_the_watchdog_is_fed_while_all_is_well(listener: Listener) -> None:
    env = {"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "40000", "WATCHDOG_PID": str(os.getpid())}
    manager = ServiceManager.from_environment(env)
    asked = 0

    def healthy() -> bool:
        nonlocal asked
        asked += 1
        return asked < 3

    beating = asyncio.create_task(manager.keep_alive(healthy))
    async with asyncio.timeout(30):
        while asked < 5:  # noqa: ASYNC110 - its own clock decides
            await asyncio.sleep(0.001)
    beating.cancel()
    assert [listener.message(), listener.message()] == [["WATCHDOG=1"]] * 2
    assert listener.nothing_waits()


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"WATCHDOG_USEC": "1000"},
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "-1"},
        {"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "1000"},
        {"NOTIFY_SOCKET": "@", "WATCHDOG_USEC": "1000"},
    ],
)
async def test_a_watchdog_of_somebody_else_and_none(env: dict[str, str]) -> None:
    manager = ServiceManager.from_environment(env)
    async with asyncio.timeout(30):
        await manager.keep_alive(lambda: True)


def test_a_service_manager_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    manager = ServiceManager(str(tmp_path / "gone"))
    manager.ready("all is well")
    manager.stopping("")


def test_a_queue_that_is_full_holds_up_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "n"))
        manager = ServiceManager(str(tmp_path / "n"))
        for number in range(1000):
            manager.status(f"{number} connections")
        assert systemd.recv(100) == b"STATUS=0 connections"
        manager.status("999 connections")
        systemd.setblocking(False)
        *_, last = iter(lambda: _next(systemd), b"")
        assert last == b"STATUS=999 connections", "what was not told is told again"


def _next(systemd: socket.socket) -> bytes:
    try:
        return systemd.recv(100)
    except BlockingIOError:
        return b""


async def test_an_end_asks_for_time(listener: Listener) -> None:
    asking = asyncio.create_task(ServiceManager(listener.address).ask_for_time())
    assert await asyncio.to_thread(listener.message) == ["EXTEND_TIMEOUT_USEC=10000000"]
    asking.cancel()


def test_a_descriptor_is_handed_over(tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as kept,
    ):
        systemd.bind(str(tmp_path / "n"))
        kept.bind(("127.0.0.1", 0))
        ServiceManager(str(tmp_path / "n")).keep("udp", kept.fileno())
        data, [found], _, _ = socket.recv_fds(systemd, 4096, 1)
        assert data == b"FDSTORE=1\nFDNAME=udp\nFDPOLL=0"
        with socket.socket(fileno=found) as same:
            assert same.getsockname() == kept.getsockname()
