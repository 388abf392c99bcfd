"""A supervisor whose relay falls silent, speaks again or goes, without a network."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from intermediate_server.client import Connection, supervisor
from intermediate_server.client.dial import Dialler, Remote
from intermediate_server.client.relay import Relay
from intermediate_server.client.state import State
from intermediate_server.client.supervisor import Supervisor
from intermediate_server.client.tasks import background
from intermediate_server.engine import Command, Event, Totals
from intermediate_server.errors import TunnelError
from intermediate_server.types import Address, Role
from intermediate_server.wire.datagrams import Ack, encode

CONN = 7
HERE = ("192.0.2.1", 4433)


class FakeRelay:
    """The far end of one connection: acknowledges what is registered, and speaks for as long as it is let."""

    def __init__(self) -> None:
        self.connection = Connection(CONN, Address.of(HERE), self._take)
        self.speaks = True
        self.looks = 0
        self._received = itertools.count(1)
        self._last = 0

    def _take(self, command: Command) -> None:
        match command:
            case Command.Inspect():
                self.looks += 1
                self._last = next(self._received) if self.speaks else self._last
                state = Event.Inspected(CONN, 1_000, 1_400, 1_300, 0, 0, 0, self._last, Totals())
                asyncio.get_running_loop().call_soon(self.connection.handle, state)
            case Command.SendDatagram():
                self.connection.handle(Event.Datagrams(CONN, [encode(Ack("web"))]))

    def close(self) -> None:
        self.connection.handle(Event.Closed(CONN, "idle_timeout", 0, "", 1, Totals()))


class FakeTunnel:
    """Remembers which services may be used."""

    def __init__(self) -> None:
        self.services: list[str] = []

    def attach(self, conn: int) -> None:
        assert conn == CONN

    def set_services(self, services: list[str]) -> None:
        self.services = services

    async def wait_connector(self, service: str) -> bool:
        return True


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch) -> FakeRelay:
    """A relay that answers the first dial and no other."""
    made = FakeRelay()
    dials = itertools.count()

    async def dial(_: Dialler) -> tuple[Connection, Remote]:
        if next(dials):
            await asyncio.Event().wait()
        return made.connection, HERE

    monkeypatch.setattr(Dialler, "dial", dial)
    monkeypatch.setattr(supervisor, "LOOK", 0.002)
    monkeypatch.setattr(supervisor, "ANSWER", 0.01)
    return made


@asynccontextmanager
async def up(
    tunnel: FakeTunnel, *, keep_alive: float = 0.01, on_limit: Callable[[int], Any] | None = None
) -> AsyncIterator[Supervisor]:
    """A registered supervisor that runs."""
    engine: Any = None
    made = Supervisor(
        engine,
        Relay(server="192.0.2.1:4433", keep_alive=keep_alive),
        role=Role.AGENT,
        services=["web"],
        tunnel=tunnel,  # type: ignore[arg-type]  # has what is used of it
        on_limit=on_limit,
    )
    async with asyncio.timeout(10), background(made.run()):
        await made.wait_until(lambda state: state.registered == ["web"])
        yield made


async def test_services_are_revoked_while_the_relay_is_silent(relay: FakeRelay) -> None:
    tunnel = FakeTunnel()
    async with up(tunnel) as supervisor:
        assert tunnel.services == ["web"]
        relay.speaks = False
        await supervisor.wait_until(lambda state: state.silent)
        assert tunnel.services == []
        assert supervisor.state.registered == ["web"]
        assert supervisor.state.last_error == "the relay is silent"
        relay.speaks = True
        await supervisor.wait_until(lambda state: not state.silent)
        assert tunnel.services == ["web"]
        assert supervisor.state.last_error == ""


async def test_a_silent_relay_that_goes_is_told_as_gone(relay: FakeRelay) -> None:
    async with up(FakeTunnel()) as supervisor:
        relay.speaks = False
        await supervisor.wait_until(lambda state: state.silent)
        relay.close()
        await supervisor.wait_until(lambda state: state.connection is None)
        assert supervisor.state.last_error == "the relay has fallen silent"
        assert supervisor.state.registered == []


async def test_a_long_keep_alive_is_no_silence(relay: FakeRelay) -> None:
    async with up(FakeTunnel(), keep_alive=3600) as supervisor:
        relay.speaks = False
        before = relay.looks
        async with asyncio.timeout(10):
            while relay.looks < before + 100:  # noqa: ASYNC110  the looks are the clock
                await asyncio.sleep(0)
        assert not supervisor.state.silent


async def test_an_interface_that_cannot_follow_ends_it(relay: FakeRelay) -> None:
    async def on_limit(limit: int) -> None:
        raise TunnelError(f"cannot set {limit}")

    with pytest.raises(TunnelError, match="cannot set 1300"):
        async with up(FakeTunnel(), on_limit=on_limit) as supervisor:
            relay.connection.handle(Event.DatagramLimit(CONN, 1300))
            await supervisor.wait_until(lambda _: False)


async def test_the_end_closes_the_connection(relay: FakeRelay) -> None:
    seen: list[State] = []
    async with up(FakeTunnel()) as supervisor:
        seen.append(supervisor.state)
    assert seen[0].connection is None


class Refusing:
    """A relay that completes every handshake and ends the connection: not let in, let in, or once it has held."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, lets_in: bool, holds: bool = False) -> None:
        self.lets_in, self.holds = lets_in, holds
        self._connection: Connection
        self.dialler: Dialler
        self.rests: list[str] = []
        self.dials = 0
        monkeypatch.setattr(Dialler, "dial", self._dial)
        monkeypatch.setattr(Dialler, "refused", lambda *_: self.rests.append("refused"))
        monkeypatch.setattr(Dialler, "served", self._served)

    async def _dial(self) -> tuple[Connection, Remote]:
        self.dials += 1
        await asyncio.sleep(0)
        self._connection = connection = Connection(CONN, Address.of(HERE), self._take)
        if not self.holds:
            asyncio.get_running_loop().call_later(0.001, connection.handle, REVOKED)
        return connection, HERE

    def _take(self, command: Command) -> None:
        if self.lets_in and isinstance(command, Command.SendDatagram):
            self._connection.handle(Event.Datagrams(CONN, [encode(Ack("web"))]))

    def _served(self, *_: object) -> None:
        self.rests.append("served")
        self._connection.handle(REVOKED)


REVOKED = Event.Closed(CONN, "application", 4, "client certificate revoked", 1, Totals())


async def run_for(refusing: Refusing, dials: int) -> tuple[Supervisor, list[MutableMapping[str, Any]]]:
    engine: Any = None
    relay = Relay(server="192.0.2.1:4433", cert_file=Path("agent.pem"))
    made = Supervisor(engine, relay, role=Role.AGENT, services=["web"])
    with capture_logs() as logs:
        async with asyncio.timeout(10), background(made.run()):
            while refusing.dials < dials:  # noqa: ASYNC110  the dials are the clock
                await asyncio.sleep(0.001)
    return made, logs


async def test_a_relay_that_ends_each_connection_is_left_alone_and_told_of_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusing = Refusing(monkeypatch, lets_in=False)
    made, logs = await run_for(refusing, 20)
    assert refusing.rests == ["refused"] * (refusing.dials - 1)
    assert [line["event"] for line in logs] == [
        "Connecting to 192.0.2.1:4433",
        "Not let in: the relay closed the connection (code 4): client certificate revoked;"
        " see our certificate agent.pem (--cert)",
    ]
    assert made.state.connects == 0


async def test_a_registration_that_does_not_hold_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = Refusing(monkeypatch, lets_in=True)
    made, logs = await run_for(refusing, 20)
    assert refusing.rests == ["refused"] * (refusing.dials - 1)
    assert made.state.connects >= refusing.dials - 2
    # What a first connection says, and that it was lost; and nothing again for half a minute.
    said = Counter(line["event"].split(":")[0] for line in logs if line["log_level"] != "debug")
    assert said["Connection lost"] == 1
    assert max(said.values()) <= 2, said


async def test_one_that_has_held_ends_the_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "HELD", 0.0)
    refusing = Refusing(monkeypatch, lets_in=True, holds=True)
    await run_for(refusing, 5)
    assert set(refusing.rests) == {"served"}
