"""Agents and connectors of the field find each other through the relay, and nobody else."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from intermediate_server import types
from intermediate_server.wire.signaling import (
    MAX_FRAME_BYTES,
    Candidate,
    CandidateAnswer,
    CandidateKind,
    CandidateOffer,
    ErrorCode,
    SignalingError,
    StartPunching,
    encode,
    frame,
)
from tests.integration.packets import Address
from tests.integration.peers import AGENT, CONNECTOR, Profile, ack, quiche_program
from tests.integration.quiche_field import SERVICE, backend
from tests.integration.signaling_peer import SignalingPeer, connector_certificate, exchange

if TYPE_CHECKING:
    from tests.integration.conftest import Server
    from tests.integration.quiche_field import StartServer

__all__ = ["backend", "quiche_program"]

# The first test may have to build BoringSSL; every wait inside a test has its own, shorter limit.
pytestmark = pytest.mark.timeout(900)

AGENT_STREAM, CONNECTOR_STREAM = 0, 1
"""The agent opens its own; the connector has not opened one when the relay first writes to it."""
CONDEMNED = 0x5A


@dataclass(frozen=True, slots=True)
class Meeting:
    """A relay as it runs during a migration, and the ends that come to it."""

    program: Path
    server: Server
    directory: Path

    @contextlib.asynccontextmanager
    async def join(
        self, profile: Profile, kind: int | None, service: bytes = SERVICE, *flags: str
    ) -> AsyncIterator[SignalingPeer]:
        """A connected peer, registered unless ``kind`` is None."""
        flags += tuple(connector_certificate(self.directory)) if profile == "connector" else ()
        starting = SignalingPeer.start(
            self.program, profile, self.server.address, ca_file=self.server.ca_file, flags=flags
        )
        async with starting as peer:
            await peer.connected()
            await peer.observed()
            if kind is not None:
                assert await peer.register(kind, service) == ack(service)
            yield peer

    @contextlib.asynccontextmanager
    async def pair(self, *, connector: Profile = "connector") -> AsyncIterator[tuple[SignalingPeer, SignalingPeer]]:
        """An agent and a connector of one service; ``test-client`` is a connector that says only what it is told to."""
        async with self.join(connector, CONNECTOR) as second, self.join("agent-core", AGENT) as first:
            yield first, second


@pytest.fixture
async def meeting(quiche_program: Path, start_server: StartServer, tmp_path: Path) -> Meeting:
    return Meeting(quiche_program, await start_server("--client-auth", "optional"), tmp_path)


async def test_a_direct_path(meeting: Meeting, backend: Address) -> None:
    async with meeting.pair() as (agent, connector):
        await connector.forward(backend)
        await agent.offer(42, SERVICE)
        stream, offer = await connector.message_on()
        assert stream == CONNECTOR_STREAM
        assert isinstance(offer, CandidateOffer)
        assert (offer.session, offer.service) == (42, SERVICE.decode())
        assert [candidate.address for candidate in offer.candidates] == [await seen_at(agent)]
        await started(agent, 42, connector, stream=AGENT_STREAM)
        await started(connector, 42, agent, stream=CONNECTOR_STREAM)
        local = await address_of(agent)
        assert await agent.until("connected") == ("connected", await address_of(connector))
        assert await connector.until("connected") == ("connected", local)

        for number in range(3):
            assert await exchange(agent, connector, SERVICE, b"directly %d" % number, backend)
        assert connector.inbox.packets.empty()
        await connector.close_direct()
        await agent.until("closed")
        assert not await exchange(agent, connector, SERVICE, b"through the relay", backend)


async def test_an_offer_that_needs_no_edit_passes_byte_for_byte(meeting: Meeting) -> None:
    async with meeting.pair(connector="test-client") as (agent, connector):
        candidates = (candidate(await seen_at(agent), foundation="mine"),)
        offer = encode(CandidateOffer(7, SERVICE.decode(), candidates)) + b"trailing"
        await agent.write(frame(offer))
        assert await connector.payload_on() == (CONNECTOR_STREAM, offer)


async def test_a_connector_that_opened_its_stream_first_is_written_to_there(meeting: Meeting) -> None:
    async with meeting.pair(connector="test-client") as (agent, connector):
        await connector.signal(CandidateAnswer(1, ()))
        stream, error = await connector.message_on()
        assert (stream, code(error)) == (0, ErrorCode.SESSION_NOT_FOUND)
        await agent.offer(2, SERVICE)
        stream, _ = await connector.message_on()
        assert stream == 0


async def test_an_offer_that_meets_nobody(meeting: Meeting) -> None:
    """It says the same of a service without connector and of one that the agent has not registered."""
    async with (
        meeting.join("agent-core", AGENT, b"lonely") as agent,
        meeting.join("connector", CONNECTOR) as connector,
        meeting.join("agent-core", None) as stranger,
    ):
        errors = []
        for peer, service in ((agent, b"lonely"), (agent, SERVICE), (stranger, SERVICE)):
            await peer.offer(5, service)
            stream, error = await peer.message_on()
            assert (stream, code(error)) == (AGENT_STREAM, ErrorCode.NO_CONNECTOR)
            assert isinstance(error, SignalingError)
            assert error.session == 5
            errors.append(error.message.replace(service.decode(), "?"))
        assert len(set(errors)) == 1
        assert connector.happenings["frame"].empty()
        # The stranger may still register, and is introduced then.
        assert await stranger.register(AGENT, SERVICE) == ack(SERVICE)
        await stranger.offer(6, SERVICE)
        await stranger.until("connected")


async def test_two_agents_with_one_number(meeting: Meeting, backend: Address) -> None:
    async with meeting.pair() as (agent, connector), meeting.join("agent-core", AGENT) as second:
        await connector.forward(backend)
        agents = {agent: ("100.64.0.1", 5_000), second: ("100.64.0.2", 5_000)}
        for peer, inner in agents.items():
            assert not await exchange(peer, connector, SERVICE, b"before", backend, inner=inner)
        numbers = []
        for peer in agents:
            await peer.offer(9, SERVICE)
            offer = await connector.message()
            assert isinstance(offer, CandidateOffer)
            assert [candidate.address for candidate in offer.candidates] == [await seen_at(peer)]
            numbers.append(offer.session)
            await started(connector, offer.session, peer, stream=CONNECTOR_STREAM)
            await started(peer, 9, connector, stream=AGENT_STREAM)
            await peer.until("connected")
        assert numbers[0] == 9
        assert numbers[1] != 9
        for number in range(3):
            for peer, inner in agents.items():
                payload = f"{inner} {number}".encode()
                assert await exchange(peer, connector, SERVICE, payload, backend, inner=inner)


async def test_a_second_agent_with_the_same_inner_address_is_not_introduced(meeting: Meeting, backend: Address) -> None:
    """Answers to what it sent directly could not be told from those to the first one."""
    async with meeting.pair() as (agent, connector), meeting.join("agent-core", AGENT) as second:
        await connector.forward(backend)
        for peer in (agent, second):
            assert not await exchange(peer, connector, SERVICE, b"before", backend)
        await agent.offer(1, SERVICE)
        await agent.until("connected")
        await second.offer(1, SERVICE)
        assert code(await second.message()) == ErrorCode.REJECTED
        assert await exchange(agent, connector, SERVICE, b"of the first", backend)
        assert not await exchange(second, connector, SERVICE, b"of the second", backend)


async def test_only_who_was_asked_answers_and_only_once(meeting: Meeting) -> None:
    async with (
        meeting.pair(connector="test-client") as (agent, connector),
        meeting.join("test-client", CONNECTOR, b"another") as stranger,
    ):
        await agent.offer(3, SERVICE)
        await connector.message()
        answer = CandidateAnswer(3, (candidate(await seen_at(connector)),))
        await stranger.signal(answer)
        assert code(await stranger.message()) == ErrorCode.SESSION_NOT_FOUND
        for number in (4, 2**64 - 1):
            await connector.signal(CandidateAnswer(number, ()))
            assert code(await connector.message()) == ErrorCode.SESSION_NOT_FOUND
        await connector.signal(answer)
        await started(connector, 3, agent, stream=CONNECTOR_STREAM)
        await connector.signal(answer)
        assert code(await connector.message()) == ErrorCode.SESSION_NOT_FOUND
        await started(agent, 3, connector, stream=AGENT_STREAM)
        assert agent.happenings["frame"].empty()


async def test_frames_in_pieces(meeting: Meeting) -> None:
    async with meeting.pair(connector="test-client") as (agent, connector):
        offers = [encode(CandidateOffer(number, SERVICE.decode(), ())) for number in (1, 2)]
        data = b"".join(map(frame, offers))
        for begin, end in ((0, 2), (2, 5), (5, 50), (50, len(data))):
            await agent.write(data[begin:end])
        for offer in offers:
            assert await connector.payload_on() == (CONNECTOR_STREAM, offer)


async def test_the_largest_frame_passes_the_windows_in_parts(meeting: Meeting) -> None:
    """The connector gets none of the bytes that follow the message."""
    async with meeting.pair(connector="test-client") as (agent, connector):
        offer = encode(CandidateOffer(1, SERVICE.decode(), ()))
        await agent.write(frame(offer.ljust(MAX_FRAME_BYTES, b"\xff")))
        assert await connector.payload_on() == (CONNECTOR_STREAM, offer)


async def test_a_frame_that_is_too_long_ends_the_stream_and_nothing_else(meeting: Meeting, backend: Address) -> None:
    async with meeting.pair() as (agent, connector):
        await connector.forward(backend)
        await agent.write((MAX_FRAME_BYTES + 1).to_bytes(4, "big") + bytes(100))
        ends = {await agent.stream_end() for _ in range(2)}
        assert ends == {(0, "reset", CONDEMNED), (0, "stopped", CONDEMNED)}
        assert not await exchange(agent, connector, SERVICE, b"the connection goes on", backend)


async def started(peer: SignalingPeer, session: int, other: SignalingPeer, *, stream: int) -> None:
    """The next message lets ``peer`` begin towards ``other``."""
    at, message = await peer.message_on()
    assert isinstance(message, StartPunching), message
    assert (at, message.session, message.start_delay_ms) == (stream, session, 100)
    assert [candidate.address for candidate in message.peer_candidates] == [await seen_at(other)]


async def address_of(peer: SignalingPeer) -> Address:
    """Where everybody sees a peer on this host."""
    return "127.0.0.1", (await peer.local())[1]


async def seen_at(peer: SignalingPeer) -> types.Address:
    return types.Address.of(await address_of(peer))


def candidate(address: types.Address, foundation: str = "host") -> Candidate:
    return Candidate(CandidateKind.HOST, address, 2_130_706_431, foundation)


def code(message: object) -> int | None:
    return message.code if isinstance(message, SignalingError) else None
