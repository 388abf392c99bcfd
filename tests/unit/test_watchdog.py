"""How it is found that the engine's thread stands still."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.fake_engine import FakeEngine

from intermediate_server.engine.bridge import Bridge
from intermediate_server.engine.watchdog import LIMIT, SUSPECT, Watchdog


class Looks:
    """A watchdog that looks as quickly as it can at ticks that the test sets."""

    def __init__(self) -> None:
        self.ticks = 0
        self.count = 0
        self.reasons: list[str] = []
        self.turning: list[bool] = []
        self.watchdog = Watchdog(self._look, self.reasons.append, interval=0.0)
        self._reached = asyncio.Condition()

    def _look(self) -> int:
        self.count += 1
        self.turning.append(self.watchdog.turning)
        return self.ticks

    async def more(self, looks: int) -> None:
        """Let it look so many times, or fewer when it stops."""
        end = self.count + looks
        async with asyncio.timeout(10):
            while self.count < end and not self.reasons:  # noqa: ASYNC110  the loop decides when
                await asyncio.sleep(0)


@pytest.fixture
async def looks() -> Looks:
    return Looks()


async def test_a_thread_that_makes_no_tick_is_suspected_and_then_given_up(looks: Looks) -> None:
    looks.watchdog.start()
    await looks.more(1_000)
    assert looks.count == 1 + LIMIT
    # Before each look: the first one has nothing to compare with.
    assert looks.turning == [True] * (1 + SUSPECT) + [False] * (LIMIT - SUSPECT)
    assert len(looks.reasons) == 1


async def test_one_tick_is_enough(looks: Looks) -> None:
    looks.watchdog.start()
    for _ in range(100):
        await looks.more(LIMIT - 1)
        looks.ticks += 1
    assert not looks.reasons
    looks.watchdog.stop()
    seen = looks.count
    for _ in range(10):
        await asyncio.sleep(0)
    assert looks.count == seen


async def test_a_process_that_was_stopped_for_an_hour_has_looked_once(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    real = loop.time
    looks.watchdog = Watchdog(looks._look, looks.reasons.append)
    looks.watchdog.start()
    monkeypatch.setattr(loop, "time", lambda: real() + 3600)
    for _ in range(20):
        await asyncio.sleep(0)
    looks.watchdog.stop()
    assert (looks.count, looks.reasons) == (1, [])


async def test_the_bridge_fails_with_the_reason(looks: Looks) -> None:
    engine = FakeEngine()
    engine.counter_values = {"ticks": 7}
    bridge = Bridge(engine)
    bridge.watchdog._interval = 0.0
    bridge.start(lambda _: None)
    try:
        assert "made no turn" in await asyncio.wait_for(bridge.wait_failed(), 10)
    finally:
        bridge.stop()
