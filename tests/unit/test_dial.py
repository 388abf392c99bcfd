"""Dialling: several addresses, name servers that hang, and pauses between tries."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Sequence
from typing import Any

import pytest
from tests.unit.settings import RELAY

from intermediate_server.client import dial as dials
from intermediate_server.client import relay as relays
from intermediate_server.client.backoff import Backoff
from intermediate_server.client.dial import Dialler, Remote
from intermediate_server.client.relay import Relay
from intermediate_server.errors import ConnectError


class TestBackoff:
    def test_it_doubles_to_its_most_with_jitter(self) -> None:
        backoff = Backoff(first=0.25, most=1.5)
        for whole in (0.25, 0.5, 1.0, 1.5, 1.5):
            assert whole / 2 <= backoff.delay() <= whole
        backoff.reset()
        assert backoff.delay() <= 0.25


class TestDialling:
    async def test_families_take_turns_and_names_are_looked_up_each_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = [["192.0.2.1", "192.0.2.2", "2001:db8::1"], ["2001:db8::2"]]

        async def lookup(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
            kinds = {True: socket.AF_INET6, False: socket.AF_INET}
            return [(kinds[":" in each], 0, 0, "", (each, port)) for each in found.pop(0)]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
        assert [host for host, _ in await relays.addresses(RELAY)] == ["192.0.2.1", "2001:db8::1", "192.0.2.2"]
        assert await relays.addresses(RELAY) == [("2001:db8::2", 4433)]

    async def test_a_name_that_no_message_can_hold(self) -> None:
        with pytest.raises(ConnectError, match="cannot be resolved"):
            await relays.addresses(Relay(server="relay..example"))

    @pytest.fixture(autouse=True)
    def quickly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dials, "Backoff", lambda first=0.001, most=0.001: Backoff(first=first, most=most))
        monkeypatch.setattr(dials, "FIRST_REST", 0.02)
        monkeypatch.setattr(dials, "STAGGER", 0.001)
        monkeypatch.setattr(dials, "PATIENCE", 0.001)
        monkeypatch.setattr(dials, "LOOK_UP", 0.001)

    async def test_a_relay_that_moves_is_found(self) -> None:
        line = Line()

        async def look_up() -> list[Remote]:
            return [("192.0.2.9" if len(line.tried) >= 3 else "192.0.2.1", 4433)]

        assert await line.dial(look_up) == ("connected", ("192.0.2.9", 4433))
        assert set(line.told) == {"nobody there"}
        assert line.dialler.known == [("192.0.2.9", 4433)]

    @pytest.mark.parametrize("hangs", [True, False])
    async def test_known_addresses_are_tried_without_a_name_server(self, hangs: bool) -> None:
        async def look_up() -> list[Remote]:
            if hangs:
                await asyncio.Event().wait()
            raise ConnectError("no name server")

        line = Line()
        assert await line.dial(look_up, known=["192.0.2.1", "192.0.2.9"]) == ("connected", ("192.0.2.9", 4433))
        assert line.tried == ["192.0.2.1", "192.0.2.9"]

    async def test_the_oldest_try_gives_way(self) -> None:
        """A path that swallows everything must not keep later tries away."""
        given_up = 0

        async def connect(_: Remote) -> Any:
            nonlocal given_up
            if next(begun) > 2 * dials.MAX_TRIES_AT_ONCE:
                return "connected"
            try:
                return await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                given_up += 1
                raise

        begun = itertools.count(1)
        assert (await Line(connect).dial(hanging, known=["192.0.2.1"]))[0] == "connected"
        assert given_up > dials.MAX_TRIES_AT_ONCE

    async def test_an_address_that_refuses_us_rests_and_the_others_do_not(self) -> None:
        line = Line()
        refusing, silent = "192.0.2.7", "192.0.2.1"
        dialling = asyncio.ensure_future(line.dial(hanging, known=[refusing, silent]))
        async with asyncio.timeout(10):
            while line.tried.count(refusing) < 4:  # noqa: ASYNC110  the tries are the clock
                await asyncio.sleep(0.001)
        dialling.cancel()
        times = [at for host, at in zip(line.tried, line.times, strict=True) if host == refusing]
        pauses = [after - before for before, after in itertools.pairwise(times)]
        # Jitter shortens each by up to half.
        assert [pause >= least for pause, least in zip(pauses, (0.01, 0.02, 0.04), strict=True)] == [True] * 3
        assert line.tried.count(silent) > 4
        line.answers.add(refusing)
        line.dialler.known = [(refusing, 4433)]
        line.dialler.served((refusing, 4433))
        line.times.append(asyncio.get_running_loop().time())
        await line.dial(hanging)
        assert line.times[-1] - line.times[-2] < 0.04, "the rest is over"

    async def test_a_race_is_won_by_the_first_that_answers(self) -> None:
        lost = asyncio.Event()

        async def connect(address: Remote) -> Any:
            if address[0] == "192.0.2.3":
                return "connected"
            if address[0] == "192.0.2.2":
                raise ConnectError("nobody there", cause="port_closed")
            try:
                await asyncio.Event().wait()
            finally:
                lost.set()

        addresses = [("192.0.2.1", 1), ("192.0.2.2", 1), ("192.0.2.3", 1)]
        won: Any = await dials.race(connect, addresses)
        assert won == "connected"
        await asyncio.wait_for(lost.wait(), 5)
        with pytest.raises(ConnectError, match=r"^nobody there$") as caught:
            await dials.race(connect, addresses[1:2] * 3)
        assert caught.value.cause == "port_closed"


async def hanging() -> list[Remote]:
    """A name server that does not answer."""
    await asyncio.Event().wait()
    return []


class Line:
    """A dialler at a made-up network, where 192.0.2.9 answers and 192.0.2.7 refuses us."""

    def __init__(self, connect: Any = None) -> None:
        self.tried: list[str] = []
        self.times: list[float] = []
        self.told: list[str] = []
        self.answers = {"192.0.2.9"}
        self.connect = connect or self._connect
        self.dialler: Dialler

    async def dial(self, look_up: Any, *, known: Sequence[str] = ()) -> Any:
        if known:
            self.dialler = Dialler(self.connect, look_up, self.told.append)
            self.dialler.known += [(host, 4433) for host in known]
        elif not hasattr(self, "dialler"):
            self.dialler = Dialler(self.connect, look_up, self.told.append)
        async with asyncio.timeout(10):
            return await self.dialler.dial()

    async def _connect(self, address: Remote) -> Any:
        self.tried.append(address[0])
        self.times.append(asyncio.get_running_loop().time())
        if address[0] in self.answers:
            return "connected"
        raise ConnectError("nobody there", cause="unknown_issuer" if address[0] == "192.0.2.7" else "silent")
