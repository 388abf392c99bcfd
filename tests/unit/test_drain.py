"""The end of a server: nobody new, everybody told, and gone within the grace time."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.admin import new_status
from tests.unit.fake_engine import FakeEngine
from tests.unit.sessions_rig import Rig, closed, register, rig, told

from intermediate_server.engine import Event
from intermediate_server.server.drain import REASON, drain
from intermediate_server.types import Role


class Ending:
    """A drain under way."""

    def __init__(self, r: Rig, *, grace: float = 10.0) -> None:
        self.status = new_status()
        self.hurry = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.task = asyncio.ensure_future(
            drain(
                bridge=r.bridge,
                engine=r.engine,
                sessions=r.sessions,
                status=self.status,
                grace=grace,
                hurry=self.hurry,
                now=self.loop.time,
            )
        )

    async def done(self) -> None:
        await asyncio.wait_for(self.task, 30)


def stopped(r: Rig) -> int | None:
    """The time the engine was given to stop, in milliseconds; None while it runs."""
    return r.engine.closed_with


def commands(engine: FakeEngine) -> list[tuple[object, ...]]:
    return told(engine.commands)


async def test_without_connections_it_ends_at_once() -> None:
    async with rig() as r:
        end = Ending(r)
        await end.done()
        assert commands(r.engine) == [("accepting", False)]
        assert (end.status.accepting, end.status.draining) == (False, True)
        assert not end.status.ready()
        assert 9_000 <= (stopped(r) or 0) <= 10_000


async def test_nobody_new_comes_in_before_the_others_are_told_and_the_engine_stops_last() -> None:
    async with rig() as r:
        await r.connect(1)
        await r.connect(2)
        end = Ending(r)
        await r.settle()
        assert commands(r.engine)[-3:] == [("accepting", False), ("close", 1, 0, REASON), ("close", 2, 0, REASON)]
        assert stopped(r) is None
        assert end.status.draining
        await r.happen(closed(1, cause="local"), closed(2, cause="local"))
        await end.done()
        assert (stopped(r) or 0) > 0


async def test_connections_that_do_not_end_are_waited_for_until_the_grace_time_is_over() -> None:
    async with rig() as r:
        await r.connect(1)
        end = Ending(r, grace=10.0)
        await r.settle()
        await r.later(6.9)
        assert not end.task.done()
        assert stopped(r) is None
        await r.later(0.2)
        await end.done()
        assert 2_000 <= (stopped(r) or 0) <= 3_000, "the rest of the time is for the engine's last packets"


async def test_a_handshake_that_completes_meanwhile_is_told_too() -> None:
    async with rig() as r:
        await r.connect(1)
        end = Ending(r)
        await r.settle()
        assert await r.connect(2) == [("close", 2, 0, REASON)]
        await r.happen(register(2, Role.AGENT, "web"), closed(1, cause="local"))
        assert not end.task.done()
        assert await r.happen(closed(2, cause="local")) == []
        await end.done()


async def test_asking_twice_ends_it_at_once() -> None:
    async with rig() as r:
        await r.connect(1)
        end = Ending(r, grace=300.0)
        await r.settle()
        end.hurry.set()
        await end.done()
        assert stopped(r) == 0


async def test_an_engine_that_fails_meanwhile_is_not_waited_for() -> None:
    async with rig() as r:
        await r.connect(1)
        end = Ending(r, grace=300.0)
        await r.settle()
        r.engine.inject(Event.Failed("broken"))
        await end.done()


async def test_no_grace_is_no_wait() -> None:
    async with rig() as r:
        await r.connect(1)
        await Ending(r, grace=0.0).done()
        assert stopped(r) == 0


async def test_what_clients_still_send_is_not_answered_and_their_end_is_noted() -> None:
    async with rig() as r:
        await r.connect(1)
        await r.register(1, Role.AGENT, "web")
        end = Ending(r)
        await r.settle()
        assert [line for line in await r.happen(register(1, Role.AGENT, "db")) if line[0] == "send"] == []
        # The last events are read after the engine has stopped.
        r.engine.inject(closed(1, cause="local"))
        await end.done()
        assert r.registry.counts.agents == 0


@pytest.mark.parametrize("count", [0, 3])
async def test_it_leaves_no_task_behind(count: int) -> None:
    before = asyncio.all_tasks()
    async with rig() as r:
        for conn in range(count):
            await r.connect(conn)
        end = Ending(r)
        await r.settle()
        await r.happen(*(closed(conn) for conn in range(count)))
        await end.done()
    assert asyncio.all_tasks() <= before | {end.task}
