"""Joins at the engine: who gets a reply, and what the others are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from cryptography import x509

from intermediate_server.engine import ClientTls, Command, ConnectConfig, EngineError, Event
from intermediate_server.pki import keys
from tests.integration.conftest import PATIENCE
from tests.integration.joins import ALPN, MAX_MESSAGE, NAME, REQUEST, Asker, Ca, JoinRelay, Raw, der

STREAM_LIMIT, PROTOCOL_VIOLATION = 0x4, 0xA
REFUSED = 0x2
UNUSABLE, DECRYPT_ERROR, NO_PROTOCOL = 0x12E, 0x133, 0x178
MALFORMED, BUSY, LATE = 1, 2, 3

CA = Ca()


@pytest.fixture
async def relay() -> AsyncIterator[JoinRelay]:
    async with JoinRelay.start(CA) as relay:
        yield relay


@pytest.fixture
async def asker() -> AsyncIterator[Asker]:
    async with Asker.start() as asker:
        yield asker


async def answer(asked: asyncio.Future[Event.Answered | Event.ConnectFailed]) -> bytes | tuple[str, int]:
    """The bytes of an answer, or cause and code of a failure."""
    async with asyncio.timeout(PATIENCE):
        event = await asked
    return event.data if isinstance(event, Event.Answered) else (event.cause, event.code)


async def still_serves(relay: JoinRelay, asker: Asker) -> None:
    """Whatever has been done to it, the relay serves the next join, and has no connection."""
    asked = asker.ask(relay, b"next")
    while (request := await relay.request()).data != b"next":
        pass
    relay.reply(request)
    assert await answer(asked) == b"welcome"
    assert relay.events == []


class TestCertificates:
    async def test_the_key_of_the_certificate_is_proven_and_nothing_else_about_it(
        self, relay: JoinRelay, asker: Asker
    ) -> None:
        key, stranger = keys.new_key(), Ca("stranger")
        for certificate in (
            CA.sign(key, usage=keys.CLIENT_AUTH),
            CA.sign(key, usage=keys.CLIENT_AUTH, days=-10),
            stranger.sign(key, usage=keys.SERVER_AUTH),
        ):
            chain = keys.certificate_pem(certificate, CA.certificate)
            asked = asker.ask(relay, pin=CA.pin, identity=(chain, keys.key_pem(key)))
            request = await relay.request()
            assert (request.certificate, request.data) == (der(certificate), REQUEST)
            assert request.remote[0] == "127.0.0.1"
            relay.reply(request)
            assert await answer(asked) == b"welcome"

    async def test_who_shows_the_certificate_of_another_is_refused(self, relay: JoinRelay, asker: Asker) -> None:
        certificate = CA.sign(keys.new_key(), usage=keys.CLIENT_AUTH)
        async with Raw.start(relay, certificates=[certificate], key=keys.new_key()) as raw:
            assert await raw.closed() == DECRYPT_ERROR
        await self.nothing_came(relay, asker)

    @pytest.mark.parametrize("size", [4_097, 5_120])
    async def test_a_certificate_above_4_kib_is_not_read(self, relay: JoinRelay, asker: Asker, size: int) -> None:
        key = keys.new_key()
        async with Raw.start(relay, certificates=[self.of_size(key, size)], key=key) as raw:
            assert await raw.closed() == UNUSABLE
        await self.nothing_came(relay, asker)
        largest = self.of_size(key, 4_096)
        asked = asker.ask(relay, identity=(keys.certificate_pem(largest), keys.key_pem(key)))
        relay.reply(await relay.request())
        assert await answer(asked) == b"welcome"

    async def test_a_chain_is_not_searched(self, relay: JoinRelay, asker: Asker) -> None:
        key = keys.new_key()
        chain = [CA.sign(key, usage=keys.CLIENT_AUTH), CA.certificate]
        async with Raw.start(relay, certificates=chain, key=key) as raw:
            assert await raw.closed() == UNUSABLE
        await self.nothing_came(relay, asker)

    @staticmethod
    def of_size(key: keys.PrivateKey, size: int) -> x509.Certificate:
        """A certificate of so many bytes; signatures vary by a few."""
        padding = size - 500
        while True:
            made = CA.sign(key, *(f"{n:04}.{'x' * 50}" for n in range(padding // 57)), f"{'y' * (padding % 57 + 1)}")
            missing = size - len(der(made))
            if missing == 0:
                return made
            padding += missing

    @staticmethod
    async def nothing_came(relay: JoinRelay, asker: Asker) -> None:
        await relay.until("join_handshake_failed", 1)
        assert relay.engine.counters()["join_requests"] == 0
        await still_serves(relay, asker)


class TestPins:
    async def test_the_pinned_certificate_is_the_only_root(self, relay: JoinRelay, asker: Asker) -> None:
        asked = asker.ask(relay, pin=CA.pin)
        relay.reply(await relay.request())
        assert await answer(asked) == b"welcome"
        assert [len(event.certificates) for event in [asked.result()] if isinstance(event, Event.Answered)] == [2]
        assert await answer(asker.ask(relay, pin=Ca().pin)) == ("unknown_issuer", 0)
        assert await answer(asker.ask(relay, pin=CA.pin, server_name="other.test")) == ("wrong_name", 0)

    async def test_a_relay_that_shows_the_pinned_certificate_and_is_not_of_it(self, asker: Asker) -> None:
        """The CA's certificate is public: whoever shows it behind another one has shown nothing."""
        async with JoinRelay.start(Ca("impostor"), shown=CA.pem) as relay:
            assert await answer(asker.ask(relay, pin=CA.pin)) == ("unknown_issuer", 0)
            await relay.until("join_handshake_failed", 1)
            assert relay.engine.counters()["join_requests"] == 0

    async def test_dates_and_purpose_still_count(self, asker: Asker) -> None:
        key = keys.new_key()
        for certificate, cause in (
            (CA.sign(key, NAME, days=-1), "expired"),
            (CA.sign(key, NAME, days=200), "not_yet_valid"),
            (CA.sign(key, NAME, usage=keys.CLIENT_AUTH), "wrong_purpose"),
        ):
            async with JoinRelay.start(CA, certificate, key) as relay:
                assert await answer(asker.ask(relay, pin=CA.pin)) == (cause, 0)

    async def test_an_intermediate_of_a_chain_can_be_pinned(self, asker: Asker) -> None:
        """The certificate file holds the chain already, and nothing is appended."""
        async with JoinRelay.start(CA, shown=b"") as relay:
            assert await answer(asker.ask(relay, pin=CA.pin)) == ("unknown_issuer", 0)
        async with JoinRelay.start(Ca("other"), shown=CA.pem + Ca("third").pem) as relay:
            assert await answer(asker.ask(relay, pin=CA.pin)) == ("unknown_issuer", 0)

    @pytest.mark.parametrize(
        ("given", "error"),
        [
            ({"pin": bytes(31)}, "32 bytes"),
            ({"pin": bytes(32), "ca_pem": CA.pem}, "stands for the CA"),
            ({"pin": bytes(32), "verify": False}, "stands for the CA"),
            ({"pin": bytes(32), "verify_name": False}, "stands for the CA"),
        ],
    )
    def test_a_pin_goes_with_nothing_that_weakens_it(self, given: dict[str, object], error: str) -> None:
        with pytest.raises(EngineError, match=error):
            ClientTls(**given)  # type: ignore[arg-type]


class TestHostileClients:
    @pytest.mark.parametrize("stream", [2, 4])
    async def test_a_second_stream_ends_the_join(self, relay: JoinRelay, asker: Asker, stream: int) -> None:
        """Unidirectional or not, before the request is whole or behind it."""
        for end in (False, True):
            async with Raw.start(relay) as raw:
                (await raw.connected()).send(REQUEST, end=end)
                if end:
                    await relay.request()
                raw.send(b"x", stream=stream)
                assert await raw.closed() == STREAM_LIMIT
        await relay.until("join_malformed", 1)
        await still_serves(relay, asker)

    async def test_a_datagram_ends_the_join(self, relay: JoinRelay, asker: Asker) -> None:
        async with Raw.start(relay) as raw:
            await raw.connected()
            raw.quic._remote_max_datagram_frame_size = 65_536
            raw.quic.send_datagram_frame(b"\x10")
            raw.transmit()
            assert await raw.closed() == PROTOCOL_VIOLATION
        await relay.until("join_malformed", 1)
        await still_serves(relay, asker)

    async def test_a_request_of_one_byte_too_many(self, relay: JoinRelay, asker: Asker) -> None:
        for size, end in ((MAX_MESSAGE + 1, True), (MAX_MESSAGE + 1, False), (10 * MAX_MESSAGE, False)):
            async with Raw.start(relay) as raw:
                (await raw.connected()).send(bytes(size), end=end)
                assert await raw.closed() == MALFORMED
        await relay.until("join_malformed", 3)
        async with Raw.start(relay) as raw:
            (await raw.connected()).send(bytes(MAX_MESSAGE))
            relay.reply(await relay.request())
            assert await raw.replied() == b"welcome"
        await still_serves(relay, asker)

    async def test_who_fails_five_times_in_a_minute_is_blocked_for_one(self, relay: JoinRelay, asker: Asker) -> None:
        for _ in range(5):
            async with Raw.start(relay) as raw:
                (await raw.connected()).send(bytes(MAX_MESSAGE + 1))
                assert await raw.closed() == MALFORMED
        assert await answer(asker.ask(relay)) == ("peer", REFUSED)
        assert relay.engine.counters()["join_refused_blocked"] == 1
        asked = asker.ask(relay, source="127.0.0.2")
        relay.reply(await relay.request())
        assert await answer(asked) == b"welcome"

    async def test_who_leaves_in_time_and_has_kept_others_out_has_failed(self, relay: JoinRelay, asker: Asker) -> None:
        async with AsyncExitStack() as stack:
            raws = [await stack.enter_async_context(Raw.start(relay)) for _ in range(5)]
            for raw in raws:
                (await raw.connected()).send(REQUEST, end=False)
            # So long by the clock of the relay, which has begun earlier.
            await asyncio.sleep(1.1)
        await relay.until("join_abandoned", 5)
        assert await answer(asker.ask(relay)) == ("peer", REFUSED)

    async def test_who_is_silent_or_reads_nothing_has_ten_seconds(self, relay: JoinRelay, asker: Asker) -> None:
        async with AsyncExitStack() as stack:
            silent, half, deaf = [
                await (await stack.enter_async_context(Raw.start(relay, reads=reads))).connected()
                for reads in (True, True, False)
            ]
            half.send(REQUEST, end=False)
            deaf.send(REQUEST)
            relay.reply(await relay.request(), bytes(1_000))
            assert [await raw.closed() for raw in (silent, half, deaf)] == [LATE] * 3
        assert relay.engine.counters()["join_timeouts"] == 3
        assert relay.engine.counters()["join_requests"] == 1
        await still_serves(relay, asker)

    async def test_who_leaves_at_once_is_not_waited_for(self, relay: JoinRelay, asker: Asker) -> None:
        async with Raw.start(relay) as raw:
            await raw.connected()
            raw.quic.send_stream_data(0, REQUEST, end_stream=True)
            raw.transmit()
            raw.close()
        async with Raw.start(relay) as raw:
            (await raw.connected()).send(REQUEST, end=False)
            raw.quic.reset_stream(0, 7)
            raw.transmit()
        await relay.until("join_abandoned", 1)
        await still_serves(relay, asker)

    async def test_32_joins_at_once_and_the_next_is_refused(self, relay: JoinRelay, asker: Asker) -> None:
        async with AsyncExitStack() as stack:
            for n in range(32):
                raw = await stack.enter_async_context(Raw.start(relay, source=f"127.0.1.{n + 1}"))
                (await raw.connected()).send(REQUEST)
            assert await answer(asker.ask(relay, source="127.0.2.1")) == ("peer", REFUSED)
            assert relay.engine.counters()["join_refused_full"] == 1
            relay.reply(await relay.request())
            await relay.until("join_replies", 1)
            asked = asker.ask(relay, b"next", source="127.0.2.1")
            while (request := await relay.request()).data != b"next":
                relay.reply(request)
            relay.reply(request)
            assert await answer(asked) == b"welcome"

    async def test_a_control_plane_that_is_behind(self) -> None:
        async with JoinRelay.start(CA, outbox_capacity=2) as relay, AsyncExitStack() as stack:
            raws = [await stack.enter_async_context(Raw.start(relay)) for _ in range(3)]
            for raw in raws:
                await raw.connected()
            # From here on nothing is taken from the outbox.
            asyncio.get_running_loop().remove_reader(relay.engine.fileno())
            for n, raw in enumerate(raws[:2], start=1):
                raw.send(REQUEST)
                await relay.until("join_requests", n)
            raws[2].send(REQUEST)
            assert await raws[2].closed() == BUSY
            assert relay.engine.counters()["join_refused_backpressure"] == 1


class TestProtocols:
    @pytest.mark.parametrize("alpn", [("ztna-v1", ALPN), (ALPN, "ztna-v1")])
    async def test_who_offers_both_is_an_ordinary_client(self, relay: JoinRelay, alpn: tuple[str, ...]) -> None:
        async with Raw.start(relay, *alpn) as raw:
            await raw.connected()
            assert raw.quic.tls.alpn_negotiated == "ztna-v1"
            await relay.until("admitted", 1)
        assert relay.engine.counters()["join_accepted"] == 0

    @pytest.mark.parametrize("alpn", [(ALPN, "h3"), ("h3",), ("ztna-join/2",), ("ztna-join/",)])
    async def test_who_offers_another_protocol_is_refused_by_name(
        self, relay: JoinRelay, alpn: tuple[str, ...]
    ) -> None:
        async with Raw.start(relay, *alpn) as raw:
            assert await raw.closed() == NO_PROTOCOL
        assert relay.engine.counters()["join_accepted"] == 0

    def test_a_message_that_no_join_carries_is_refused_here(self, relay: JoinRelay) -> None:
        config = ConnectConfig(remote=("127.0.0.1", 1), server_name=NAME, tls=ClientTls(verify=False))
        for command in (Command.JoinReply(1, bytes(MAX_MESSAGE + 1)), Command.Ask(1, config, bytes(MAX_MESSAGE + 1))):
            with pytest.raises(EngineError, match="at most 16384 bytes, not 16385"):
                relay.engine.apply([command])
