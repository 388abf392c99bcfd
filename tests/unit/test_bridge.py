"""The bridge: bounded loads of events in, one batch of commands out, and no failure that stops it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from structlog.testing import capture_logs
from tests.unit.fake_engine import FakeEngine

from intermediate_server.engine import Command, EngineError, Event
from intermediate_server.engine.bridge import MAX_EVENTS, MOST_LAG, Bridge
from intermediate_server.engine.lag import BUCKETS, LoopLag
from intermediate_server.engine.watchdog import SUSPECT


class Engine(FakeEngine):
    """Remembers how much was asked for, and fails on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[int] = []
        self.drain_error: BaseException | None = None
        self.apply_error: EngineError | None = None

    def drain(self, maximum: int) -> list[Event]:
        if self.drain_error is not None:
            raise self.drain_error
        taken = super().drain(maximum)
        self.loads.append(len(taken))
        return taken

    def apply(self, commands: Sequence[Command]) -> None:
        if self.apply_error is not None:
            raise self.apply_error
        super().apply(commands)


Start = Callable[[Callable[[Event], None]], Bridge]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def start(engine: Engine) -> AsyncIterator[Start]:
    bridges: list[Bridge] = []

    def start(dispatch: Callable[[Event], None]) -> Bridge:
        bridge = Bridge(engine)
        bridge.start(dispatch)
        bridges.append(bridge)
        return bridge

    yield start
    for bridge in bridges:
        bridge.stop()


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def control(number: int) -> Event:
    return Event.Control(number, b"")


def send(number: int) -> Command:
    return Command.SendDatagram(number, b"")


def conns(batch: Sequence[Command]) -> list[int]:
    return [command.conn for command in batch if isinstance(command, Command.SendDatagram)]


async def test_events_come_in_order_and_their_commands_leave_as_one_batch(engine: Engine, start: Start) -> None:
    seen: list[int] = []

    def dispatch(event: Event) -> None:
        assert isinstance(event, Event.Control)
        seen.append(event.conn)
        bridge.submit(send(event.conn), send(1000 + event.conn))

    bridge = start(dispatch)
    engine.inject(*(control(number) for number in range(5)))
    await turns()
    assert seen == [0, 1, 2, 3, 4]
    assert [conns(batch) for batch in engine.batches] == [[0, 1000, 1, 1001, 2, 1002, 3, 1003, 4, 1004]]


async def test_a_flood_is_taken_in_bounded_loads_with_room_for_others_between(engine: Engine, start: Start) -> None:
    order: list[str] = []

    def dispatch(event: Event) -> None:
        order.append("event")

    start(dispatch)
    engine.inject(*(control(number) for number in range(3 * MAX_EVENTS + 1)))
    loop = asyncio.get_running_loop()

    def others() -> None:
        order.append("other")
        if order.count("event") < 3 * MAX_EVENTS + 1:
            loop.call_soon(others)

    loop.call_soon(others)
    await turns(100)
    assert [load for load in engine.loads if load] == [512, 512, 512, 1]
    first, last = order.index("event"), len(order) - 1 - order[::-1].index("event")
    assert order[first:last].count("other") >= 3, "the loop turned between the loads"


async def test_commands_submitted_elsewhere_leave_at_the_end_of_the_turn(engine: Engine, start: Start) -> None:
    bridge = start(lambda _: None)
    bridge.submit(send(1))
    bridge.submit(send(2), send(3))
    assert engine.batches == []
    await turns()
    assert [conns(batch) for batch in engine.batches] == [[1, 2, 3]]
    bridge.submit(send(4))
    bridge.finish()
    assert conns(engine.batches[-1]) == [4]
    await turns()
    assert len(engine.batches) == 2, "nothing is applied twice, and no empty batch"


async def test_commands_for_an_engine_that_is_being_closed_are_no_failure_of_it(engine: Engine, start: Start) -> None:
    bridge = start(lambda _: bridge.submit(send(3)))
    bridge.submit(send(1))
    bridge.finish()
    engine.apply_error = EngineError("the engine has stopped")
    bridge.submit(send(2))
    await turns()
    engine.inject(control(1))
    bridge.drain_now()
    failed = asyncio.ensure_future(bridge.wait_failed())
    await turns()
    assert not failed.done()
    failed.cancel()
    assert [conns(batch) for batch in engine.batches] == [[1]]


async def test_what_is_submitted_before_the_start_and_before_the_stop_is_applied(engine: Engine) -> None:
    bridge = Bridge(engine)
    bridge.submit(send(1))
    bridge.start(lambda _: None)
    engine.inject(control(1))
    await turns()
    bridge.submit(send(2))
    bridge.stop()
    bridge.stop()
    assert [number for batch in engine.batches for number in conns(batch)] == [1, 2]
    engine.inject(control(1))
    await turns()
    assert sum(engine.loads) == 1, "nobody listens any more"


async def test_a_handler_that_raises_costs_its_own_event_only(engine: Engine, start: Start) -> None:
    class PanicError(BaseException):
        """As a panic of the engine arrives: no ``Exception``."""

    def dispatch(event: Event) -> None:
        assert isinstance(event, Event.Control)
        bridge.submit(send(event.conn))
        if event.conn == 1:
            raise RuntimeError("first")
        if event.conn == 2:
            raise PanicError("second")

    bridge = start(dispatch)
    with capture_logs() as logs:
        engine.inject(*(control(number) for number in range(4)))
        await turns()
    assert conns(engine.batches[0]) == [0, 1, 2, 3]
    assert bridge.dispatch_errors == 2
    assert [line["event"] for line in logs] == ["Event handler failed"], "one traceback a second"
    assert logs[0]["event_type"] == "Control"


async def test_a_failure_that_a_peer_repeats_cannot_fill_the_log(engine: Engine, start: Start) -> None:
    def dispatch(_: Event) -> None:
        raise ValueError

    bridge = start(dispatch)
    with capture_logs() as logs:
        engine.inject(*(control(number) for number in range(2000)))
        await turns(100)
    assert bridge.dispatch_errors == 2000
    assert len(logs) <= 3


async def test_the_engines_failure_is_told_once_and_the_last(engine: Engine, start: Start) -> None:
    seen: list[Event] = []
    bridge = start(seen.append)
    engine.inject(control(1), Event.Failed("no memory"), control(2), Event.Failed("again"))
    assert await asyncio.wait_for(bridge.wait_failed(), 5) == "no memory"
    await turns()
    assert len(seen) == 1
    assert await bridge.wait_failed() == "no memory", "whoever asks later is told too"
    engine.inject(control(3))
    bridge.drain_now()
    await turns()
    assert len(seen) == 1


@pytest.mark.parametrize("error", [EngineError("gone"), RuntimeError("x"), BaseException("panic")], ids=repr)
async def test_an_engine_that_gives_no_events_has_failed(engine: Engine, start: Start, error: BaseException) -> None:
    bridge = start(lambda _: None)
    engine.drain_error = error
    engine.inject(control(1))
    assert str(error) in await asyncio.wait_for(bridge.wait_failed(), 5)


async def test_an_engine_that_takes_no_commands_has_failed(engine: Engine, start: Start) -> None:
    bridge = start(lambda _: None)
    engine.apply_error = EngineError("the engine has stopped")
    bridge.submit(send(1))
    assert "the engine has stopped" in await asyncio.wait_for(bridge.wait_failed(), 5)


async def test_a_wait_that_is_cancelled_does_not_end_the_others(engine: Engine, start: Start) -> None:
    bridge = start(lambda _: None)
    first, second = (asyncio.ensure_future(bridge.wait_failed()) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    engine.inject(Event.Failed("end"))
    assert await asyncio.wait_for(second, 5) == "end"


async def test_waiting_for_a_failure_before_the_start_is_a_mistake(engine: Engine) -> None:
    with pytest.raises(RuntimeError):
        await Bridge(engine).wait_failed()


async def test_drain_now_takes_all_that_is_left(engine: Engine, start: Start) -> None:
    seen: list[Event] = []
    bridge = start(seen.append)
    engine.inject(*(control(number) for number in range(MAX_EVENTS + 5)))
    bridge.drain_now()
    assert len(seen) == MAX_EVENTS + 5


class TestLag:
    def test_the_histogram(self) -> None:
        lag = LoopLag()
        for seconds in (-1.0, 0.0, 0.001, 0.0011, 0.3, 100.0):
            lag.observe(seconds)
        counts = dict(lag.cumulative())
        assert counts["0.001"] == 3
        assert counts["0.0025"] == 4
        assert counts["0.5"] == 5
        assert counts["2.5"] == 5
        assert counts["+Inf"] == 6
        assert len(counts) == len(BUCKETS) + 1
        assert lag.last == 100.0
        assert lag.total == pytest.approx(100.3021)

    async def test_a_loop_that_is_held_up_shows(self) -> None:
        loop = asyncio.get_running_loop()
        real = loop.time
        lag = LoopLag(interval=5.0)
        lag.start()
        loop.time = lambda: real() + 5.4  # type: ignore[method-assign]  # as if something had run for so long
        try:
            await turns(3)
        finally:
            loop.time = real  # type: ignore[method-assign]
            lag.stop()
        assert 0.4 <= lag.last < 1.0
        assert sum(lag.counts) == 1


async def test_nothing_turns_while_the_loop_is_late_or_the_thread_stands_still(engine: Engine) -> None:
    bridge = Bridge(engine)
    turning = []
    for lag, missed in ((0.1, 0), (MOST_LAG, 0), (0.1, SUSPECT), (0.1, SUSPECT - 1)):
        bridge.lag.observe(lag)
        bridge.watchdog._missed = missed
        turning.append(bridge.turning)
    assert turning == [True, False, False, True]
