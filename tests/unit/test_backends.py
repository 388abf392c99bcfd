"""The applications behind a connector, by names that come and go."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from intermediate_server.client.backends import Backends
from intermediate_server.client.specs import BackendSpec
from intermediate_server.client.tasks import background


class TestBackends:
    async def test_the_last_answer_of_a_name_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers: list[list[str] | Exception] = [
            ["192.0.2.1", "192.0.2.2"], OSError("try again"), ValueError("a label is empty"),
            ["192.0.2.2", "192.0.2.1"], ["192.0.2.3"],
        ]  # fmt: skip

        async def lookup(*_: object, **__: object) -> list[tuple[Any, ...]]:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return [(0, 0, 0, "", (each, 0)) for each in answer]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
        backends = Backends([BackendSpec.parse("web=tcp://app.example:80,tcp://192.0.2.9:81")])
        assert backends.made()[0].addresses == [("192.0.2.9", 81)]
        assert await backends.look_up("app.example")
        first = [("192.0.2.1", 80), ("192.0.2.2", 80), ("192.0.2.9", 81)]
        assert backends.made()[0].addresses == first
        assert [await backends.look_up("app.example") for _ in range(3)] == [False] * 3
        assert backends.made()[0].addresses == first
        assert await backends.look_up("app.example")
        assert backends.made()[0].addresses == [("192.0.2.3", 80), ("192.0.2.9", 81)]

    async def test_a_name_that_hangs_holds_up_no_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def lookup(host: str, *_: object, **__: object) -> list[tuple[Any, ...]]:
            if host == "hangs.example":
                await asyncio.Event().wait()
            return [(socket.AF_INET6, 0, 0, "", ("fe80::1%eth7", 0, 0, 7))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
        specs = [BackendSpec.parse(text) for text in ("a=tcp://hangs.example:1", "b=tcp://app.example:2")]
        backends, changed = Backends(specs), asyncio.Event()
        async with asyncio.timeout(10), background(backends.follow(changed.set)):
            await changed.wait()
        # The zone of a link-local address is the number that the engine takes.
        assert [item.addresses for item in backends.made()] == [[], [("fe80::1%7", 2)]]
