"""A supervisor that gets a new certificate: the new connection takes the old one's place, or nothing changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from intermediate_server.client import Connection, successor, supervisor
from intermediate_server.client.dial import Dialler, Remote
from intermediate_server.client.relay import Relay
from intermediate_server.client.supervisor import Supervisor
from intermediate_server.client.tasks import background
from intermediate_server.engine import Command, Event, Totals
from intermediate_server.types import Address, Role
from intermediate_server.wire.datagrams import Ack, Nack, decode_control, encode

HERE = ("192.0.2.1", 4433)
SERVICES = ["web", "db"]


class FakeRelays:
    """A relay whose connections are numbered from 1, and what they and the tunnel were told, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[object, ...]] = []
        self.connections: dict[int, Connection] = {}
        self.refuses: dict[int, list[str]] = {}
        self.lets_in = True
        self.silent = False
        self._received = 0
        monkeypatch.setattr(Dialler, "dial", self._dial)
        monkeypatch.setattr(supervisor, "LOOK", 0.002)
        monkeypatch.setattr(supervisor, "ANSWER", 0.05)
        monkeypatch.setattr(successor, "SETTLE", 0.01)
        monkeypatch.setattr(successor, "LINGER", 0.02)

    async def _dial(self, *_: object) -> tuple[Connection, Remote]:
        conn = len(self.connections) + 1
        connection = Connection(conn, Address.of(HERE), lambda command: self._take(conn, command))
        self.connections[conn] = connection
        if self.lets_in:
            connection.handle(Event.Datagrams(conn, []))
        else:
            asyncio.get_running_loop().call_soon(
                connection.handle, Event.Closed(conn, "application", 4, "certificate revoked", 1, Totals())
            )
        return connection, HERE

    def _take(self, conn: int, command: Command) -> None:
        connection = self.connections[conn]
        match command:
            case Command.Inspect():
                self._received += not self.silent
                state = Event.Inspected(conn, 1_000, 1_400, 1_300, 0, 0, 0, self._received, Totals())
                asyncio.get_running_loop().call_soon(connection.handle, state)
            case Command.SendDatagram(data=data):
                message = decode_control(data)
                service = getattr(message, "service", "")
                refused = service in self.refuses.get(conn, ())
                self.told.append(("refused" if refused else "registered", conn, service))
                answer = Nack(2, service) if refused else Ack(service)
                asyncio.get_running_loop().call_soon(connection.handle, Event.Datagrams(conn, [encode(answer)]))
            case Command.Close(reason=reason):
                self.told.append(("closed", conn, reason))
                connection.handle(Event.Closed(conn, "local", 0, "", 1, Totals()))

    # The tunnel

    def attach(self, conn: int) -> None:
        self.told.append(("begins", conn))

    def receive(self, conn: int) -> None:
        self.told.append(("receives", conn))

    def take_over(self, conn: int) -> None:
        self.told.append(("takes over", conn))

    def set_services(self, services: list[str]) -> None:
        pass

    async def wait_connector(self, service: str) -> bool:
        return True


@pytest.fixture
def relays(monkeypatch: pytest.MonkeyPatch) -> FakeRelays:
    return FakeRelays(monkeypatch)


@asynccontextmanager
async def up(relays: FakeRelays) -> AsyncIterator[Supervisor]:
    """A supervisor with two services that runs, and has registered what it could."""
    engine: Any = None
    relay = Relay(server="192.0.2.1:4433", keep_alive=0.01, verify=False)
    tunnel: Any = relays
    made = Supervisor(engine, relay, role=Role.AGENT, services=SERVICES, tunnel=tunnel)
    async with asyncio.timeout(10), background(made.run()):
        await made.wait_until(
            lambda state: all(value.value in ("registered", "refused") for value in state.services.values())
        )
        relays.told.clear()
        yield made


async def test_all_is_registered_before_the_tunnel_moves_and_the_old_connection_ends_last(relays: FakeRelays) -> None:
    async with up(relays) as made:
        usable: list[list[str]] = []
        made.renew()
        while ("closed", 1, "replaced") not in relays.told:
            usable.append(made.state.usable)
            await asyncio.sleep(0)
        assert all(services == SERVICES for services in usable), "at no time was one of them away"
        assert made.state.connects == 2
        assert made.state.connection is relays.connections[2]
    assert relays.told[:5] == [
        ("receives", 2),
        ("registered", 2, "web"),
        ("registered", 2, "db"),
        ("takes over", 2),
        ("closed", 1, "replaced"),
    ]


async def test_a_service_that_would_be_lost_keeps_the_old_connection(relays: FakeRelays) -> None:
    relays.refuses[2] = ["db"]
    with capture_logs() as logs:
        async with up(relays) as made:
            made.renew()
            while not any(told[0] == "closed" for told in relays.told):  # noqa: ASYNC110  the relay's part
                await asyncio.sleep(0)
            assert ("closed", 2, "not needed") in relays.told
            assert made.state.registered == SERVICES
            assert made.state.connection is relays.connections[1]
            # The next certificate may be a better one.
            made.renew()
            await made.wait_until(lambda state: state.connection is relays.connections.get(3))
    (line,) = [line for line in logs if line["event"].startswith("The connection stays as it is")]
    assert "'db'" in line["reason"]
    assert ("takes over", 2) not in relays.told


async def test_a_service_that_was_refused_before_holds_nothing_up(relays: FakeRelays) -> None:
    relays.refuses = {1: ["db"], 2: ["db"]}
    async with up(relays) as made:
        made.renew()
        await made.wait_until(lambda state: state.connection is relays.connections.get(2))
        assert made.state.registered == ["web"]
        assert "'db'" in made.state.last_error


async def test_a_certificate_that_is_not_let_in_changes_nothing(relays: FakeRelays) -> None:
    with capture_logs() as logs:
        async with up(relays) as made:
            relays.lets_in = False
            made.renew()
            while not any(line["event"].startswith("The connection stays") for line in logs):  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert made.state.registered == SERVICES
            assert made.state.connection is relays.connections[1]


async def test_the_end_during_a_hand_over_closes_both(relays: FakeRelays, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(successor, "LINGER", 60)
    async with up(relays) as made:
        made.renew()
        await made.wait_until(lambda state: state.connection is relays.connections.get(2))
    assert {told[1] for told in relays.told if told[0] == "closed"} == {1, 2}


async def test_a_relay_that_falls_silent_meanwhile_is_dialled_once(
    relays: FakeRelays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(successor, "SETTLE", 60)
    async with up(relays) as made:
        relays.connections[1].handle(Event.DatagramLimit(1, 1_400))
        made.renew()
        while ("receives", 2) not in relays.told:  # noqa: ASYNC110
            await asyncio.sleep(0)
        relays.silent = True
        await made.wait_until(lambda state: state.connection is relays.connections.get(3))
        relays.silent = False
        await made.wait_until(lambda state: state.registered == SERVICES)
        assert ("closed", 2, "not needed") in relays.told
        assert ("begins", 3) in relays.told
        assert not made._renewal.is_set()
