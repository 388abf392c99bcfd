"""What the book of signaling orders reaches the engine, with the route changes of the same turn."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs
from tests.unit.sessions_rig import Rig, closed, rig

from intermediate_server.access.admission import Refusal
from intermediate_server.engine import Command, Event, Totals
from intermediate_server.policy import Allow, Decision, Deny, Policy
from intermediate_server.sessions.offers import WAITING
from intermediate_server.sessions.signaling import OFFERS_PER_TURN, TURN, UNCUTTABLE
from intermediate_server.signaling import Settings
from intermediate_server.types import Address, Registration, Role
from intermediate_server.wire.signaling import (
    Candidate,
    CandidateAnswer,
    CandidateKind,
    CandidateOffer,
    ErrorCode,
    Message,
    PunchingResult,
    SignalingError,
    StartPunching,
    decode,
    encode,
)

AGENT, CONNECTOR, STRANGER = 1, 2, 3
PUBLIC = Candidate(CandidateKind.HOST, Address.of(("198.51.100.7", 50_000)), 2_130_706_431, "host")


class Direct(Policy):
    """Allows everything, and direct paths to whom it is told."""

    def __init__(self) -> None:
        self.not_direct: set[Role] = set()
        self.denied: set[Role] = set()

    async def authorize(self, registration: Registration) -> Decision:
        return self.decide(registration)

    def decide(self, registration: Registration) -> Decision:
        if registration.role in self.denied:
            return Deny("a test says so")
        return Allow("rule", direct=registration.role not in self.not_direct)


@pytest.fixture
def policy() -> Direct:
    return Direct()


@pytest.fixture
async def pair(policy: Direct) -> AsyncIterator[Rig]:
    """An agent and a connector of one service, and a stranger."""
    async with rig(policy) as made:
        for conn in (AGENT, CONNECTOR, STRANGER):
            await made.connect(conn)
        await made.register(AGENT, Role.AGENT, "web")
        await made.register(CONNECTOR, Role.CONNECTOR, "web")
        yield made


def signal(conn: int, message: Message) -> Event:
    return Event.Signal(conn, encode(message))


def offer(session: int = 7, service: str = "web") -> CandidateOffer:
    return CandidateOffer(session, service, (PUBLIC,))


async def ordered(rig: Rig, *events: Event) -> list[Command]:
    """What the engine was told because of events."""
    before = len(rig.engine.commands)
    await rig.happen(*events)
    return rig.engine.commands[before:]


def sent(commands: list[Command]) -> list[tuple[int, Message]]:
    return [(each.conn, decode(each.payload)) for each in commands if isinstance(each, Command.SendSignal)]


def errors(commands: list[Command]) -> list[tuple[int, int]]:
    return [(conn, message.code) for conn, message in sent(commands) if isinstance(message, SignalingError)]


async def errors_within(rig: Rig, seconds: float) -> list[tuple[int, int]]:
    """Errors that are sent in these seconds."""
    before = len(rig.engine.commands)
    await rig.later(seconds)
    return errors(rig.engine.commands[before:])


async def offered(rig: Rig, session: int = 7) -> None:
    """An offer that the connector has been sent."""
    [look_up] = await ordered(rig, signal(AGENT, offer(session)))
    assert isinstance(look_up, Command.LookUpRoute)
    assert (look_up.agent, look_up.service) == (AGENT, b"web")
    [(conn, forwarded)] = sent(await ordered(rig, Event.RouteFound(look_up.request, CONNECTOR, None)))
    assert conn == CONNECTOR
    assert isinstance(forwarded, CandidateOffer)


async def started(rig: Rig, session: int = 7) -> list[Command]:
    await offered(rig, session)
    return await ordered(rig, signal(CONNECTOR, CandidateAnswer(session, (PUBLIC,))))


async def test_an_introduction_is_made_before_anybody_is_told(pair: Rig) -> None:
    introduce, *told = await started(pair)
    assert isinstance(introduce, Command.Introduce)
    assert (introduce.agent, introduce.connector) == (AGENT, CONNECTOR)
    assert {conn for conn, message in sent(told) if isinstance(message, StartPunching)} == {AGENT, CONNECTOR}
    [result] = sent(await ordered(pair, signal(AGENT, PunchingResult(7, success=True))))
    assert result == (CONNECTOR, PunchingResult(7, success=True))


@pytest.mark.parametrize("message", [CandidateAnswer(7, (PUBLIC,)), PunchingResult(7, success=True)])
async def test_a_stranger_changes_nothing(pair: Rig, message: Message) -> None:
    await offered(pair)
    assert all(conn == STRANGER for conn, _ in sent(await ordered(pair, signal(STRANGER, message))))
    assert await ordered(pair, signal(CONNECTOR, CandidateAnswer(7, (PUBLIC,)))) != []


async def test_the_end_of_a_connection_separates_in_the_batch_of_its_routes(pair: Rig) -> None:
    await started(pair)
    before = len(pair.engine.batches)
    await pair.happen(closed(CONNECTOR))
    [batch] = pair.engine.batches[before:]
    assert [type(each) for each in batch] == [Command.SetService, Command.Separate]


@pytest.mark.parametrize(("role", "route"), [(Role.AGENT, Command.SetAgent), (Role.CONNECTOR, Command.SetService)])
async def test_a_revocation_separates_in_the_batch_of_its_routes(
    pair: Rig, policy: Direct, role: Role, route: type[Command]
) -> None:
    await started(pair)
    policy.denied.add(role)
    before = len(pair.engine.batches)
    pair.sessions.registrations.reauthorize_all()
    await pair.settle()
    [batch] = pair.engine.batches[before:]
    assert [type(each) for each in batch] == [route, Command.Separate, Command.Close]


@pytest.mark.parametrize("role", list(Role))
async def test_a_policy_that_denies_direct_paths_ends_them(pair: Rig, policy: Direct, role: Role) -> None:
    await started(pair)
    policy.not_direct.add(role)
    before = len(pair.engine.commands)
    pair.sessions.registrations.reauthorize_all()
    await pair.settle()
    assert [type(each) for each in pair.engine.commands[before:]] == [Command.Separate]
    [first] = await ordered(pair, signal(AGENT, offer(8)))
    if role is Role.CONNECTOR:
        assert isinstance(first, Command.LookUpRoute)
        [first] = await ordered(pair, Event.RouteFound(first.request, CONNECTOR, None))
    assert errors([first]) == [(AGENT, ErrorCode.REJECTED)]


async def test_what_nobody_registered_looks_like_what_nobody_serves(pair: Rig) -> None:
    [look_up] = await ordered(pair, signal(AGENT, offer()))
    assert isinstance(look_up, Command.LookUpRoute)
    nobody = await ordered(pair, Event.RouteFound(look_up.request, None, None))
    await pair.register(STRANGER, Role.AGENT, "other")
    unregistered = await ordered(pair, signal(STRANGER, offer()))
    [(_, first)], [(_, second)] = sent(nobody), sent(unregistered)
    assert first == second
    assert errors(nobody) == [(AGENT, ErrorCode.NO_CONNECTOR)]


async def test_a_reload_and_a_drain_refuse(pair: Rig) -> None:
    await offered(pair)
    before = len(pair.engine.commands)
    pair.sessions.signaling.use(Settings(direct="off"))
    await pair.settle()
    assert errors(pair.engine.commands[before:]) == [(AGENT, ErrorCode.REJECTED)]
    assert errors(await ordered(pair, signal(AGENT, offer(8)))) == [(AGENT, ErrorCode.REJECTED)]
    pair.sessions.signaling.use(Settings())
    await offered(pair, 9)
    before = len(pair.engine.commands)
    pair.sessions.close_all(0, "bye")
    await pair.settle()
    assert errors(pair.engine.commands[before:]) == [(AGENT, ErrorCode.REJECTED)]


async def test_an_unanswered_offer_ends_in_silence(pair: Rig) -> None:
    await offered(pair)
    before = len(pair.engine.commands)
    await pair.later(5.1)
    assert pair.engine.commands[before:] == []
    assert errors(await ordered(pair, signal(CONNECTOR, CandidateAnswer(7, (PUBLIC,))))) == [
        (CONNECTOR, ErrorCode.SESSION_NOT_FOUND)
    ]
    assert pair.sessions.signaling.book.records[-1].reason == "unanswered"


@pytest.mark.parametrize(
    ("sent", "received", "probable"), [(3, 0, True), (0, 0, False), (3, 3, False)], ids=["answers", "nothing", "both"]
)
async def test_traffic_tells_of_a_direct_path(pair: Rig, sent: int, received: int, probable: bool) -> None:
    await started(pair)

    def inspected(sent: int, received: int) -> Event:
        totals = Totals(sent_datagrams=sent, received_datagrams=received)
        return Event.Inspected(AGENT, 0, 1_350, 1_300, 0, 0, 0, 0, totals)

    for moved, seconds in ((inspected(5, 7), 4.1), (inspected(5 + sent, 7 + received), 10.1)):
        before = len(pair.engine.commands)
        await pair.later(seconds)
        [inspect] = [each for each in pair.engine.commands[before:] if isinstance(each, Command.Inspect)]
        assert inspect.conn == AGENT
        await pair.happen(moved)
    await pair.later(1.0)
    record = pair.sessions.signaling.book.records[-1]
    assert record.outcome == "unreported"
    assert ("probably direct" in record.sentence) is probable


async def test_a_peer_that_does_not_read_loses_its_sessions(pair: Rig) -> None:
    await offered(pair)
    assert errors(await ordered(pair, Event.SignalDropped(CONNECTOR))) == [(AGENT, ErrorCode.REJECTED)]
    assert pair.sessions.signaling.book.records[-1].reason == "peer_not_reading"


async def test_malformed_payloads_end_the_stream_in_the_end(pair: Rig) -> None:
    for _ in range(16):
        assert await ordered(pair, Event.Signal(AGENT, b"malformed")) == []
    [end] = await ordered(pair, Event.Signal(AGENT, b"malformed"))
    assert isinstance(end, Command.EndSignaling)
    assert end.conn == AGENT
    await pair.happen(Event.SignalEnded(AGENT, "condemned"))
    assert pair.sessions.signaling.book.totals.streams == {"condemned": 1}


async def test_offers_are_taken_by_turns_and_registrations_come_first(pair: Rig) -> None:
    clients = range(10, 10 + WAITING // 8)
    for conn in clients:
        await pair.connect(conn)
        await pair.register(conn, Role.AGENT, "other")
    events = [signal(conn, offer(session)) for conn in clients for session in range(8)]
    more = [signal(AGENT, offer(session)) for session in range(8)]
    first = await ordered(pair, *events, Event.Control(AGENT, b"\x10\x03web"), *more)
    assert isinstance(first[0], Command.SendDatagram), "the registration that came last"
    refused, looked_at = errors(first)[:8], errors(first)[8:]
    assert refused == [(AGENT, ErrorCode.REJECTED)] * 8, "as many wait as may"
    assert looked_at == [(conn, ErrorCode.NO_CONNECTOR) for conn in (10,) * 8 + (11,) * 2]
    assert len(await errors_within(pair, TURN)) == OFFERS_PER_TURN


async def test_a_flood_from_one_source_keeps_nobody_else_waiting(pair: Rig) -> None:
    clients = range(10, 10 + WAITING // 8)
    for conn in clients:
        await pair.connect(conn)
    await pair.connect(9, host="198.51.100.9")
    await pair.register(9, Role.AGENT, "web")
    flood = [signal(conn, offer(session)) for conn in clients for session in range(8)]
    commands = await ordered(pair, *flood, signal(9, offer()))
    assert errors(commands) == [(clients[-1], ErrorCode.REJECTED)], "the newest of who has most"
    assert [each.agent for each in commands if isinstance(each, Command.LookUpRoute)] == [9]


async def test_the_end_of_a_session_is_logged_however_it_ends(pair: Rig) -> None:
    with capture_logs() as logs:
        await offered(pair)
        await pair.happen(closed(AGENT))
        await pair.connect(AGENT)
        await pair.register(AGENT, Role.AGENT, "web")
        await offered(pair)
        await pair.happen(closed(CONNECTOR))
    lines = [line for line in logs if line["event"].startswith("Introduction ended")]
    assert [line.pop("event") for line in lines] == [
        "Introduction ended: The agent's connection closed",
        "Introduction ended: The connector's connection closed",
    ]
    connector = {"connector": "192.0.2.1:1002", "service": "web", "log_level": "info", "outcome": "failed"}
    agent = {"peer": "192.0.2.1:1001", "conn": AGENT, "identity": "anonymous"}
    for line, reason in zip(lines, ("agent_gone", "connector_gone"), strict=True):
        assert line.pop("ms") >= 0
        assert line == connector | agent | {"reason": reason}


@pytest.mark.parametrize("how", ["closed", "disconnected"])
async def test_the_end_of_a_pair_that_has_begun_is_logged_too(pair: Rig, how: str) -> None:
    await started(pair)
    with capture_logs() as logs:
        if how == "closed":
            await pair.happen(closed(AGENT))
        else:
            pair.sessions.disconnect(AGENT, Refusal(0, "operator", "bye", "bye"))
            await pair.settle()
    assert [line["reason"] for line in logs if "Introduction ended" in line["event"]] == ["agent_gone"]


async def test_the_first_introduction_warns_that_nobody_can_cut_it(pair: Rig) -> None:
    with capture_logs() as logs:
        await started(pair, 7)
        await pair.happen(closed(CONNECTOR))
        await pair.connect(CONNECTOR)
        await pair.register(CONNECTOR, Role.CONNECTOR, "web")
        await started(pair, 8)
    assert [line["log_level"] for line in logs if line["event"] == UNCUTTABLE] == ["warning"]


async def test_an_offer_waits_for_the_registration_of_its_sender(pair: Rig) -> None:
    assert await ordered(pair, signal(STRANGER, offer())) == []
    [*_, look_up] = await ordered(pair, Event.Control(STRANGER, b"\x10\x03web"))
    assert isinstance(look_up, Command.LookUpRoute)
    assert look_up.agent == STRANGER
    await pair.connect(9)
    assert await ordered(pair, signal(9, offer())) == []
    assert await errors_within(pair, 2.9) == []
    assert await errors_within(pair, 0.2) == [(9, ErrorCode.NO_CONNECTOR)]
    await pair.connect(10)
    await pair.happen(signal(10, offer()))
    await pair.happen(closed(10))
    assert 10 not in dict(await errors_within(pair, 4.0))


async def test_an_offer_gives_its_connection_time_to_register_once() -> None:
    async with rig(registration_timeout=10.0) as made:
        for conn in (AGENT, STRANGER):
            await made.connect(conn)
        await made.happen(signal(AGENT, offer()))
        ended = await made.later(10.1)
        assert [(each[0], each[1]) for each in ended] == [("close", STRANGER)]
        await made.happen(signal(AGENT, offer(8)))
        ended = await made.later(10.1)
        assert [(each[0], each[1]) for each in ended] == [("close", AGENT)]
