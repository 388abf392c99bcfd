"""A defect while an event is handled: the connection that it is about is closed, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.unit.sessions_rig import Rig, ack, certificate, closed, connected, register, rig

from intermediate_server.access.capacity import Places
from intermediate_server.engine import Event
from intermediate_server.sessions import address_reports, connections, dispatcher, registrations
from intermediate_server.types import Role
from intermediate_server.wire import close_codes


class DefectError(BaseException):
    """As bad as it gets: no handler expects it."""


class Defects:
    """Makes one call of many fail, whatever it is that is called."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails_at: int | None = None
        self.failed = ""

    def around(self, inner: Any, name: str) -> Any:
        """The same as ``inner``, where any call may fail."""
        return _Fragile(self, inner, name)

    def call(self, name: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """A call that may fail before it does anything."""
        self.calls += 1
        if self.calls == self.fails_at:
            self.failed = name
            raise DefectError(name)
        return function(*arguments, **named)


class _Fragile:
    def __init__(self, defects: Defects, inner: Any, name: str) -> None:
        self._defects, self._inner, self._name = defects, inner, name

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found
        return lambda *a, **k: self._defects.call(f"{self._name}.{name}", found, *a, **k)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._defects.call(self._name, self._inner, *arguments, **named)


@asynccontextmanager
async def fragile(defects: Defects, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """Sessions all of whose helpers may fail."""
    # A traceback with all locals for each would take longer than all the rest.
    with capture_logs():
        async with rig(places=Places(per_source=9, per_identity=9)) as r:
            s = r.sessions
            for owner, names in (
                (s, ("decisions",)),
                (s.connections, ("_identify", "admission", "_decisions", "_places", "_expiries")),
                (s._reports, ("_decisions",)),
                (s.registrations, ("_decisions",)),
                (s.registrations._grants, ("_registry", "_quotas", "_deadlines")),
            ):
                for name in names:
                    monkeypatch.setattr(owner, name, defects.around(getattr(owner, name), name))
            for module in (connections, dispatcher, address_reports, registrations):
                monkeypatch.setattr(module, "_log", defects.around(module._log, "log"))
            yield r
            r.bridge.dispatch_errors = 0


EVENTS = (
    connected(7, certificate("connector.web.ztna", "agent.web.ztna"), host="192.0.2.7"),
    register(7, Role.CONNECTOR, "web"),
    register(7, Role.AGENT, "web"),
    Event.AddressChanged(7, ("198.51.100.7", 7)),
    closed(7),
)


async def life(r: Rig, defects: Defects) -> tuple[Event, list[tuple[object, ...]]]:
    """Let the events happen until a call fails; the last one, and what the engine was told after it."""
    for event in EVENTS:
        told = await r.happen(event)
        if defects.failed or isinstance(event, Event.Closed):
            return event, told
    raise AssertionError("it ends with its end")


async def test_whichever_call_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The events of a connection's life are gone through again and again, and each time the next call fails."""
    tried: list[str] = []
    for fails_at in itertools.count(1):
        defects = Defects()
        async with fragile(defects, monkeypatch) as r:
            defects.fails_at = fails_at
            event, told = await life(r, defects)
            defects.fails_at = None
            failed = defects.failed
            tried.append(failed)
            if failed and not isinstance(event, Event.Closed):
                assert told[-1] == ("close", 7, close_codes.INTERNAL_ERROR, "internal error"), failed
                # Nothing more is done for it, and its end is its end.
                assert await r.happen(register(7, Role.AGENT, "other")) == [], failed
                await r.happen(closed(7))
            assert not r.sessions.live, failed
            assert (r.totals.proven, r.totals.anonymous) == (0, 0), failed
            async with asyncio.timeout(5):
                await r.sessions.wait_empty()
            if not (failed.startswith("_registry") and isinstance(event, Event.Closed)):
                assert r.registry.counts.services == 0, failed
            # Others do not notice.
            await r.connect(8, "agent.web.ztna")
            assert ack(8, "web") in await r.register(8, Role.AGENT, "web"), failed
            await r.happen(closed(8))
        monkeypatch.undo()
        if not failed:
            break
    assert len(tried) > 20
    assert {"_identify", "admission.refusal", "_places.take", "_registry.register", "log.info"} <= set(tried)
