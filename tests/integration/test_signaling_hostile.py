"""Signaling as nobody should speak it: each ends in the named Error or a counter, and the relaying goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from intermediate_server.wire.signaling import (
    CandidateAnswer,
    ErrorCode,
    PunchingResult,
    SignalingError,
    StartPunching,
    decode,
)
from tests.integration.aioquic_peer import AioquicPeer
from tests.integration.conftest import Server, StartServer
from tests.integration.packets import udp_packet
from tests.integration.peers import AGENT, CONNECTOR
from tests.integration.signals import framed, offer
from tests.unit.signaling import host

SERVICE = b"web"
PACKET = udp_packet(("100.64.0.1", 5_000), ("10.0.0.5", 80), b"x")
CONDEMNED = {("reset", 0, 0x5A), ("stop", 0, 0x5A)}
PUBLIC = host("198.51.100.7", 50_000)


@pytest.fixture
async def server(start_server: StartServer) -> Server:
    return await start_server("--client-auth", "off", "--metrics-port", "0", "--registration-timeout", "1")


@contextlib.asynccontextmanager
async def join(server: Server, kind: int | None, *, reads: bool = True) -> AsyncIterator[AioquicPeer]:
    async with AioquicPeer.start(server.address, reads=reads) as peer:
        await peer.observed()
        if kind is not None:
            await peer.register(kind, SERVICE)
        yield peer


async def error(peer: AioquicPeer) -> tuple[int | None, int]:
    """Session and code of the next frame, which is an Error on stream 0."""
    stream, payload = await peer.signal()
    message = decode(payload)
    assert isinstance(message, SignalingError), message
    assert stream == 0
    return message.session, message.code


async def relays(agent: AioquicPeer, connector: AioquicPeer) -> None:
    """The agent's packets arrive."""
    await agent.send(PACKET)
    assert await connector.packet() == PACKET


@pytest.mark.parametrize(
    "data",
    [
        pytest.param((65_537).to_bytes(4) + bytes(100), id="a length over the largest"),
        pytest.param(b"\xff" * 4, id="a length of 4 GiB"),
        pytest.param((5).to_bytes(4) + b"never", id="not read as its end never comes"),
        pytest.param(framed(StartPunching(1, 100, ())) + (100).to_bytes(4) + b"cut", id="cut short"),
        pytest.param((1).to_bytes(4) + b"x" + (3).to_bytes(4) + b"yyy", id="no messages"),
    ],
)
async def test_bytes_that_are_no_signaling_end_no_connection(server: Server, data: bytes) -> None:
    async with join(server, CONNECTOR) as connector, join(server, AGENT) as agent:
        agent.write(data)
        await relays(agent, connector)
        if int.from_bytes(data[:4]) > 65_536:
            assert {await agent.stream_end() for _ in range(2)} == CONDEMNED
        await relays(agent, connector)


async def test_a_frame_that_never_ends_ends_its_stream(server: Server) -> None:
    async with join(server, CONNECTOR) as connector, join(server, AGENT) as agent:
        agent.write((60_000).to_bytes(4) + bytes(20_000))
        assert {await agent.stream_end() for _ in range(2)} == CONDEMNED
        await relays(agent, connector)


async def test_the_seventeenth_malformed_payload_ends_the_stream_and_the_next_one_works(server: Server) -> None:
    async with join(server, AGENT) as agent:
        agent.write(17 * ((1).to_bytes(4) + b"x"))
        assert {await agent.stream_end() for _ in range(2)} == CONDEMNED
        stream = agent.next_stream()
        agent.write(offer("web"), stream=stream)
        at, payload = await agent.signal()
        assert (at, decode(payload)) == (
            stream,
            SignalingError(42, ErrorCode.NO_CONNECTOR, "The service has no connector"),
        )


@pytest.mark.parametrize("count", [65, 1_150])
async def test_too_many_candidates_are_not_looked_at(server: Server, count: int) -> None:
    async with join(server, AGENT) as agent:
        agent.write(offer("web", *[host("1.2.3.4", number + 1) for number in range(count)]))
        assert await error(agent) == (42, ErrorCode.INVALID)


async def test_an_offer_without_a_registration_is_answered_and_its_connection_kept(server: Server) -> None:
    """It may be ahead of a registration that got lost, so it waits for it; agents in the field then wait 10 s."""
    async with join(server, CONNECTOR), join(server, None) as agent:
        agent.write(offer("web"))
        assert await error(agent) == (42, ErrorCode.NO_CONNECTOR)
        await agent.ping()
        await agent.register(AGENT, SERVICE)
        agent.write(offer("web", PUBLIC, session=43))
        with pytest.raises(TimeoutError):
            # The connector is asked, and answers nothing.
            await asyncio.wait_for(agent.signal(), 6)


async def test_an_offer_waits_for_a_registration_that_comes_late(server: Server) -> None:
    async with join(server, CONNECTOR) as connector, join(server, None) as agent:
        agent.write(offer("web", PUBLIC))
        await agent.ping()
        await agent.register(AGENT, SERVICE)
        stream, _ = await connector.signal()
        assert stream == 1


async def test_answers_and_results_of_strangers(server: Server) -> None:
    async with join(server, CONNECTOR) as connector, join(server, AGENT) as agent, join(server, AGENT) as stranger:
        agent.write(offer("web", PUBLIC))
        await connector.signal()
        stranger.write(framed(CandidateAnswer(42, (host("203.0.113.66", 6_666),))))
        assert await error(stranger) == (42, ErrorCode.SESSION_NOT_FOUND)
        stranger.write(framed(PunchingResult(42, success=False)) + framed(SignalingError(42, 6, "stolen")))
        connector.write(framed(CandidateAnswer(42, (PUBLIC,))))
        for peer in (agent, connector):
            started = decode((await peer.signal())[1])
            assert isinstance(started, StartPunching)
            assert "203.0.113.66" not in str(started)
        connector.write(framed(CandidateAnswer(42, (PUBLIC,))))
        assert decode((await connector.signal())[1]) == SignalingError(
            42, ErrorCode.SESSION_NOT_FOUND, "no such session"
        )


async def test_a_connector_that_does_not_read_its_stream(server: Server) -> None:
    """What waits for it is bounded, and agents hear that it does not answer."""
    async with (
        join(server, CONNECTOR, reads=False) as connector,
        contextlib.AsyncExitStack() as stack,
    ):
        agents = [await stack.enter_async_context(join(server, AGENT)) for _ in range(5)]
        list_of_many = [host("198.51.100.7", port + 1) for port in range(64)]
        for agent in agents:
            for session in range(8):
                agent.write(offer("web", *list_of_many, session=session))
        assert (await error(agents[-1]))[1] == ErrorCode.REJECTED
        await relays(agents[0], connector)


async def test_five_hundred_offers_at_once(server: Server) -> None:
    async with join(server, CONNECTOR) as connector, join(server, AGENT) as agent, join(server, AGENT) as other:
        for session in range(500):
            agent.write(offer("lonely", session=session))
        other.write(offer("web", PUBLIC, session=9))
        _, payload = await connector.signal()
        assert payload[4:12] == (9).to_bytes(8, "little")
        await relays(other, connector)
        codes = {(await error(agent))[1] for _ in range(20)}
        assert codes == {ErrorCode.NO_CONNECTOR, ErrorCode.REJECTED}


async def test_an_offer_settles_which_connector_an_agent_has(server: Server) -> None:
    async with contextlib.AsyncExitStack() as stack:
        connectors = [await stack.enter_async_context(join(server, CONNECTOR)) for _ in range(4)]
        agent = await stack.enter_async_context(join(server, AGENT))
        asked = []
        for session in range(2):
            agent.write(offer("web", PUBLIC, session=session))
            asking = [asyncio.ensure_future(connector.signal()) for connector in connectors]
            await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            asked += [connector for connector, one in zip(connectors, asking, strict=True) if one.done()]
            for one in asking:
                one.cancel()
            for _ in range(3):
                await relays(agent, asked[0])
        assert len(asked) == 2
        assert asked[0] is asked[1]


async def test_a_second_stream_is_refused_while_the_first_is_open(server: Server) -> None:
    async with join(server, AGENT) as agent:
        agent.write(offer("web", session=1))
        assert await error(agent) == (1, ErrorCode.NO_CONNECTOR)
        agent.write(offer("web", session=2), stream=4)
        agent.write(offer("web", session=3))
        assert await error(agent) == (3, ErrorCode.NO_CONNECTOR)
        assert agent.inbox.signals.empty()
