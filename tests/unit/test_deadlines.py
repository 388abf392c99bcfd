"""Deadlines by the wall clock: one timer, no matter how many."""

from __future__ import annotations

import asyncio
import time

import pytest

from intermediate_server.sessions import deadlines as module
from intermediate_server.sessions.deadlines import Deadlines


async def collect(count: int, calls: list[str]) -> None:
    async with asyncio.timeout(10):
        while len(calls) < count:  # noqa: ASYNC110 - a list cannot be waited for
            await asyncio.sleep(0.001)


async def test_keys_are_due_in_order_and_at_their_moment() -> None:
    moments: dict[str, float] = {}
    calls: list[str] = []

    def due(key: str) -> None:
        calls.append(key)
        moments[key] = time.time()

    deadlines: Deadlines[str] = Deadlines(due)
    begun = time.time()
    deadlines.set("second", begun + 0.06)
    deadlines.set("first", begun + 0.03)
    deadlines.set("past", begun - 1_000)
    deadlines.set("never", begun + 1e9)
    await collect(3, calls)
    assert calls == ["past", "first", "second"]
    assert moments["first"] >= begun + 0.03
    assert moments["second"] >= begun + 0.06
    assert len(deadlines) == 1
    deadlines.stop()


async def test_a_key_has_one_moment_and_may_lose_it() -> None:
    calls: list[str] = []
    deadlines: Deadlines[str] = Deadlines(calls.append)
    now = time.time()
    deadlines.set("moved", now)
    deadlines.set("moved", now + 1e9)
    deadlines.set("cancelled", now)
    deadlines.cancel("cancelled")
    deadlines.cancel("unknown")
    deadlines.set("last", now + 0.02)
    await collect(1, calls)
    assert calls == ["last"]
    deadlines.stop()


async def test_a_clock_that_is_set_forward_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.01)
    calls: list[str] = []
    clock = 1_000.0
    deadlines: Deadlines[str] = Deadlines(calls.append, clock=lambda: clock)
    deadlines.set("in an hour", clock + 3_600)
    await asyncio.sleep(0.03)
    assert calls == []
    clock += 3_600
    await collect(1, calls)
    deadlines.stop()


async def test_what_is_cancelled_does_not_stay_in_memory() -> None:
    deadlines: Deadlines[int] = Deadlines(lambda _: None)
    for key in range(10_000):
        deadlines.set(key, time.time() + 1e6)
        deadlines.cancel(key)
    assert len(deadlines) == 0
    assert len(deadlines._heap) < 200
    deadlines.stop()


async def test_one_that_fails_does_not_stop_the_others() -> None:
    calls: list[str] = []
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))

    def due(key: str) -> None:
        if key == "bad":
            raise ValueError(key)
        calls.append(key)

    deadlines: Deadlines[str] = Deadlines(due)
    deadlines.set("bad", 0.0)
    deadlines.set("good", 1.0)
    await collect(1, calls)
    assert len(problems) == 1
    deadlines.stop()
