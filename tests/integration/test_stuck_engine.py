"""An engine whose thread stands still: the process says so, and ends instead of serving nobody for ever."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from intermediate_server.testing.plugin import StartAgent, StartRelay
from tests.integration.conftest import PATIENCE, StartServer
from tests.integration.relaying import with_metrics

PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
WALL = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def engine_thread(pid: int) -> int:
    """The id of the engine's thread of a process."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().strip() == "ztna-engine":
            return int(task.name)
    raise AssertionError("no engine thread")


def hold(tid: int) -> None:
    """Stop this thread alone, for as long as its process lives. Skips the test where nobody may."""
    held: list[int] = []
    done = threading.Event()

    def trace() -> None:
        failed = _libc.ptrace(PTRACE_SEIZE, tid, None, None) or _libc.ptrace(PTRACE_INTERRUPT, tid, None, None)
        held.append(ctypes.get_errno() if failed else 0)
        if failed:
            done.set()
            return
        # Its end is told to whoever holds it, and the process is there until that is read.
        with suppress(ChildProcessError):
            while os.WIFSTOPPED(os.waitpid(tid, WALL)[1]):
                done.set()

    threading.Thread(target=trace, daemon=True).start()
    assert done.wait(PATIENCE)
    if held[0]:
        pytest.skip(f"a thread cannot be stopped here: {os.strerror(held[0])}")


async def test_a_relay_is_not_ready_and_then_ends_with_the_reason(start_server: StartServer) -> None:
    server = await start_server(*with_metrics())
    admin = await server.wait_log("Admin listening on")
    async with httpx.AsyncClient(base_url=f"http://{admin['host']}:{admin['port']}") as http:
        assert (await http.get("/readyz")).status_code == 200
        hold(engine_thread(server.process.pid))
        async with asyncio.timeout(PATIENCE):
            while (answer := await http.get("/readyz")).status_code == 200:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert answer.status_code == 503
        assert "has stopped turning" in answer.text
        assert (await http.get("/livez")).status_code == 503
    failed = await server.wait_log("Engine failed")
    assert failed["reason"] == "its thread has made no turn for 5 s"
    async with asyncio.timeout(PATIENCE):
        assert await server.process.wait() == 1


async def test_an_agent_ends_with_the_reason(start_relay: StartRelay, start_agent: StartAgent) -> None:
    agent = await start_agent(await start_relay(), [("tcp", "web")])
    hold(engine_thread(agent.process.pid))
    await agent.wait_log("made no turn for 5 s")
    async with asyncio.timeout(PATIENCE):
        assert await agent.process.wait() == 1
