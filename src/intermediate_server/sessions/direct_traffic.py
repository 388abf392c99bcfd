"""Direct traffic: clients of ztna-v1 do not report a direct path, and the traffic past them tells of it.

Answers of a connector in the field come by the relay while its agent sends directly. So an agent that is sent packets
and sends none probably has a direct path.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from intermediate_server.engine import Command, Event, Totals
from intermediate_server.types import ConnectionId

BEGIN, END = 4.0, 14.0
"""Seconds from StartPunching between which the traffic of an agent is compared; its session lasts a little longer."""


@dataclass(slots=True)
class _Watched:
    """The sessions of one agent that are being watched."""

    asked: deque[int] = field(default_factory=deque)
    """Serials in the order in which the engine was asked."""
    before: dict[int, Totals] = field(default_factory=dict)
    """What had been moved at the beginning, by serial."""
    timers: dict[int, asyncio.TimerHandle] = field(default_factory=dict)


class Traffic:
    """Compares what agents have sent and were sent, twice for each session."""

    def __init__(self, *, submit: Callable[..., None], probably_direct: Callable[[int], None]) -> None:
        """``probably_direct`` is called with the serial of a session."""
        self._submit = submit
        self._probably_direct = probably_direct
        self._agents: dict[int, _Watched] = {}

    def stop(self) -> None:
        """Cancel the timers."""
        for agent in tuple(self._agents):
            self.forget(agent)

    def watch(self, serial: int, agent: ConnectionId) -> None:
        """Compare the traffic of an agent whose session has started."""
        self._ask_at(BEGIN, serial, agent)

    def forget(self, agent: int) -> None:
        """Stop watching a connection that closes."""
        watched = self._agents.pop(agent, None)
        for timer in () if watched is None else watched.timers.values():
            timer.cancel()

    def inspected(self, event: Event.Inspected) -> None:
        """Take an answer of the engine; answers for one connection come in the order of the questions."""
        watched = self._agents.get(event.conn)
        if watched is None or not watched.asked:
            return
        serial = watched.asked.popleft()
        before = watched.before.pop(serial, None)
        if before is None:
            watched.before[serial] = event.totals
            self._ask_at(END - BEGIN, serial, event.conn)
            return
        now = event.totals
        if now.received_datagrams == before.received_datagrams and now.sent_datagrams > before.sent_datagrams:
            self._probably_direct(serial)
        if not watched.timers and not watched.asked:
            del self._agents[event.conn]

    def _ask_at(self, seconds: float, serial: int, agent: int) -> None:
        watched = self._agents.setdefault(agent, _Watched())
        watched.timers[serial] = asyncio.get_running_loop().call_later(seconds, self._ask, serial, agent)

    def _ask(self, serial: int, agent: int) -> None:
        watched = self._agents[agent]
        del watched.timers[serial]
        watched.asked.append(serial)
        self._submit(Command.Inspect(agent))
