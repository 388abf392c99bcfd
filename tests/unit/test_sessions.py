"""Sessions as a conversation with the engine: what happens, and what the engine is told because of it."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs
from tests.unit.sessions_rig import HOST, ack, certificate, closed, connected, nack, port_of, register, rig

from intermediate_server.access.admission import Admission
from intermediate_server.engine import Event
from intermediate_server.policy import Allow, Decision, Deny, Policy
from intermediate_server.types import Registration, Role
from intermediate_server.wire import close_codes

AGENT, CONNECTOR = Role.AGENT, Role.CONNECTOR


def report(conn: int, host: str = "192.0.2.1", port: int | None = None) -> tuple[object, ...]:
    address = bytes(int(part) for part in host.split("."))
    return ("send", conn, b"\x01" + address + (port or port_of(conn)).to_bytes(2, "big"))


class TestRegistration:
    async def test_the_route_stands_before_the_ack_and_in_one_batch_with_it(self) -> None:
        async with rig() as r:
            await r.connect(1)
            assert await r.register(1, CONNECTOR, "web") == [("service", "web", [1]), ack(1, "web")]
            await r.connect(2)
            batches = len(r.engine.batches)
            assert await r.register(2, AGENT, "web") == [("agent", 2, ["web"]), ack(2, "web")]
            assert len(r.engine.batches) == batches + 1
            assert r.totals.registrations == 2

    async def test_everything_of_one_wake_up_is_one_batch_in_order(self) -> None:
        async with rig() as r:
            first = connected(1)
            assert await r.happen(first, register(1, AGENT, "a"), register(1, AGENT, "b")) == [
                report(1),
                ("agent", 1, ["a"]),
                ack(1, "a"),
                ("agent", 1, ["a", "b"]),
                ack(1, "b"),
            ]
            assert len(r.engine.batches) == 1

    async def test_a_repeated_registration_is_acknowledged_again_and_changes_nothing(self) -> None:
        async with rig() as r:
            await r.connect(1)
            await r.register(1, AGENT, "web")
            assert await r.register(1, AGENT, "web") == [ack(1, "web")]
            assert r.totals.registrations == 1

    async def test_the_empty_service_is_one_like_any_other(self) -> None:
        async with rig() as r:
            await r.connect(1)
            assert await r.register(1, AGENT, "") == [("agent", 1, [""]), ("send", 1, b"\x12\x00\x00")]

    @pytest.mark.parametrize("data", [b"", b"\x10", b"\x11\x05web", b"\x12\x00\x00", b"\x01" * 7])
    async def test_a_malformed_message_is_counted_and_not_answered(self, data: bytes) -> None:
        async with rig() as r:
            await r.connect(1)
            assert await r.happen(Event.Control(1, data)) == []
            assert (r.totals.control_ignored, r.totals.denied) == (1, 0)

    async def test_an_id_that_is_not_utf8_is_refused_without_its_bytes(self) -> None:
        async with rig() as r:
            await r.connect(1)
            assert await r.happen(Event.Control(1, b"\x10\x02\xff\xfe")) == [("send", 1, b"\x13\x01\x00")]
            assert r.totals.denied == 1

    async def test_a_certificate_decides(self) -> None:
        async with rig() as r:
            await r.connect(1, "agent.web.ztna")
            assert (await r.register(1, AGENT, "web"))[-1] == ack(1, "web")
            assert await r.register(1, AGENT, "db") == [nack(1, "db")]
            assert await r.register(1, CONNECTOR, "web") == [nack(1, "web")]
            assert (r.totals.registrations, r.totals.denied) == (1, 2)
            assert (r.totals.proven, r.totals.anonymous) == (1, 0)

    async def test_a_refusal_is_logged_once_and_counted_each_time(self) -> None:
        with capture_logs() as logs:
            async with rig() as r:
                await r.connect(1, "agent.web.ztna")
                for _ in range(3):
                    assert await r.register(1, AGENT, "db") == [nack(1, "db")]
                assert r.totals.denied == 3
        assert len([line for line in logs if "Registration denied" in line["event"]]) == 1

    async def test_more_services_than_a_connection_may_have(self) -> None:
        async with rig(max_services=2) as r:
            await r.connect(1)
            for service in ("a", "b"):
                assert (await r.register(1, AGENT, service))[-1] == ack(1, service)
            assert await r.register(1, AGENT, "c") == [nack(1, "c")]
            assert await r.register(1, AGENT, "a") == [ack(1, "a")]

    async def test_a_full_registry_is_silent_so_that_clients_ask_again(self) -> None:
        async with rig(max_in_all=1) as r:
            await r.connect(1)
            await r.connect(2)
            assert (await r.register(1, AGENT, "a"))[-1] == ack(1, "a")
            assert await r.register(2, AGENT, "b") == []
            assert r.totals.denied == 1
            await r.happen(closed(1))
            assert (await r.register(2, AGENT, "b"))[-1] == ack(2, "b")

    async def test_a_flood_of_messages_is_cut_at_the_connections_rate(self) -> None:
        async with rig() as r:
            await r.connect(1)
            await r.connect(2)
            flood = [register(1, AGENT, "web")] * 1000
            answers = await r.happen(*flood, register(2, AGENT, "web"))
            assert answers.count(ack(1, "web")) == 200
            assert answers[-1] == ack(2, "web"), "others do not pay for it"
            assert r.totals.control_dropped == 800
            await r.later(1.1)
            assert await r.register(1, AGENT, "web") == [ack(1, "web")]

    async def test_the_log_a_peer_can_cause_is_bounded(self) -> None:
        with capture_logs() as logs:
            async with rig(max_services=4096) as r:
                await r.connect(1, "agent.web.ztna")
                for second in range(4):
                    await r.happen(*(register(1, AGENT, f"s{second}-{n}") for n in range(200)))
                    await r.later(1.1)
                assert r.totals.denied == 800
        assert 100 < len(logs) < 300

    async def test_services_are_not_mixed_up(self) -> None:
        async with rig() as r:
            for conn, service in ((1, "web"), (2, "db")):
                await r.connect(conn)
                await r.register(conn, CONNECTOR, service)
            await r.connect(3)
            await r.register(3, AGENT, "web")
            assert await r.register(3, AGENT, "db") == [("agent", 3, ["web", "db"]), ack(3, "db")]
            assert await r.happen(closed(2)) == [("service", "db", [])]

    async def test_what_a_stranger_sends_is_nothing(self) -> None:
        async with rig() as r:
            assert await r.happen(register(9, AGENT, "web"), Event.AddressChanged(9, ("192.0.2.9", 1)), closed(9)) == []


class TestCertificates:
    async def test_one_that_cannot_be_read_ends_the_connection(self) -> None:
        async with rig() as r:
            event = connected(1, b"not a certificate")
            # What came in the same packet as the end of the handshake is not looked at.
            (end,) = await r.happen(event, register(1, AGENT, "web"))
            assert end[:3] == ("close", 1, close_codes.BAD_CERTIFICATE)
            assert (r.totals.registrations, r.totals.address_reports) == (0, 0)
            await r.happen(closed(1, cause="local"))
            await asyncio.wait_for(r.sessions.wait_empty(), 1)
            assert r.totals.anonymous + r.totals.proven == 0

    async def test_only_the_leaf_counts(self) -> None:
        async with rig() as r:
            chain = [certificate("agent.other.ztna"), certificate("agent.web.ztna")]
            await r.happen(connected(1, *chain))
            assert await r.register(1, AGENT, "web") == [nack(1, "web")]


class TestAddresses:
    async def test_it_is_reported_at_once(self) -> None:
        async with rig() as r:
            assert await r.connect(1) == [report(1)]
            assert await r.connect(2, host="2001:db8::1") == [
                ("send", 2, b"\x02" + bytes.fromhex("20010db8" + "00" * 11 + "01") + port_of(2).to_bytes(2, "big"))
            ]
            assert await r.connect(3, host="::ffff:192.0.2.3") == [report(3, "192.0.2.3")]
            assert r.totals.address_reports == 3

    async def test_changes_are_reported_ten_times_a_second_and_the_last_always(self) -> None:
        async with rig() as r:
            await r.connect(1)
            changes = [Event.AddressChanged(1, ("192.0.2.1", port)) for port in range(2000, 2100)]
            assert await r.happen(*changes) == [], "the first report was just now"
            assert await r.later(0.11) == [report(1, port=2099)]
            assert await r.later(5) == []
            assert await r.happen(Event.AddressChanged(1, ("192.0.2.1", 3000))) == [report(1, port=3000)]
            assert r.totals.address_reports == 3

    async def test_nothing_is_reported_to_a_connection_that_is_gone(self) -> None:
        async with rig() as r:
            await r.connect(1)
            await r.register(1, AGENT, "web")
            await r.happen(Event.AddressChanged(1, ("192.0.2.1", 2000)))
            await r.happen(closed(1))
            assert await r.later(1) == []

    async def test_a_policy_that_looks_at_the_address_is_asked_again(self) -> None:
        class Home(Policy):
            async def authorize(self, registration: Registration) -> Decision:
                return Allow() if str(registration.peer.address.host) == "192.0.2.1" else Deny("away")

        async with rig(Home()) as r:
            await r.connect(1)
            assert (await r.register(1, AGENT, "web"))[-1] == ack(1, "web")
            await r.happen(Event.AddressChanged(1, ("192.0.2.1", 2)))
            assert r.registry.counts.agents == 1, "another port is no other place"
            told = await r.happen(Event.AddressChanged(1, ("203.0.113.1", 1)))
            assert told[-1] == ("close", 1, close_codes.ACCESS_REVOKED, "access revoked")
            assert r.registry.counts.agents == 0
            assert await r.register(1, AGENT, "web") == [], "nothing was left to it, so it is being closed"


class TestDeadline:
    async def test_who_registers_nothing_is_closed(self) -> None:
        async with rig(registration_timeout=10.0) as r:
            await r.connect(1)
            await r.connect(2)
            await r.register(2, AGENT, "web")
            assert await r.later(9) == []
            await r.connect(3)
            assert await r.later(1.5) == [
                ("close", 1, close_codes.NEVER_REGISTERED, "nothing registered within 10 s"),
            ]
            assert r.totals.never_registered == 1
            assert await r.register(1, AGENT, "web") == [], "too late"
            await r.happen(closed(3))
            assert await r.later(20) == [], "the third left by itself, the second is registered"

    async def test_a_refused_registration_is_none(self) -> None:
        async with rig(registration_timeout=10.0) as r:
            await r.connect(1, "agent.web.ztna")
            await r.register(1, AGENT, "db")
            assert [line[0] for line in await r.later(10.5)] == ["close"]


class TestTheEnd:
    @pytest.mark.parametrize("cause", ["local", "application", "peer", "transport", "idle_timeout", "reset", "panic"])
    async def test_nothing_is_left_whichever_way_it_comes(self, cause: str) -> None:
        async with rig() as r:
            await r.connect(1, "connector.web.ztna", "agent.db.ztna")
            await r.register(1, CONNECTOR, "web")
            await r.register(1, AGENT, "db")
            assert ("service", "web", []) in await r.happen(closed(1, cause=cause))
            counts = r.registry.counts
            assert (counts.agents, counts.connectors, counts.services) == (0, 0, 0)
            assert (r.totals.proven, r.totals.anonymous) == (0, 0)
            await asyncio.wait_for(r.sessions.wait_empty(), 1)
            assert await r.happen(closed(1)) == [], "only once"

    async def test_an_older_connector_takes_over(self) -> None:
        async with rig() as r:
            for conn in (1, 2):
                await r.connect(conn)
                await r.register(conn, CONNECTOR, "web")
            assert await r.happen(closed(2)) == [("service", "web", [1])]

    async def test_closing_all_leaves_nobody_served(self) -> None:
        async with rig() as r:
            for conn in (1, 2):
                await r.connect(conn)
            batches = len(r.engine.batches)
            assert r.sessions.close_all(0, "bye") == 2
            await r.settle()
            assert r.told_since(batches) == [("close", 1, 0, "bye"), ("close", 2, 0, "bye")]
            assert await r.register(1, AGENT, "web") == []
            waiting = asyncio.ensure_future(r.sessions.wait_empty())
            await r.happen(closed(1))
            assert not waiting.done()
            await r.happen(closed(2))
            assert waiting.done()

    async def test_a_thousand_comings_and_goings_leave_nothing(self) -> None:
        async with rig() as r:
            for conn in range(1000):
                await r.happen(
                    connected(conn), register(conn, AGENT, "web"), register(conn, CONNECTOR, f"s{conn}"), closed(conn)
                )
            counts = r.registry.counts
            assert (counts.agents, counts.connectors, counts.services) == (0, 0, 0)
            assert (r.totals.anonymous, r.totals.registrations) == (0, 2000)

    @pytest.mark.parametrize(
        ("event", "reason"),
        [
            (Event.HandshakeFailed((HOST, 1), "peer sent no certificates", "no_certificate"), "shows no certificate"),
            (Event.HandshakeFailed((HOST, 1), "UnknownIssuer", "unknown_issuer"), "a CA of clients (--ca-cert)"),
            (Event.HandshakeFailed((HOST, 1), "", "peer", 0x130), "refuses the server's certificate or TLS (alert 48)"),
            (Event.HandshakeFailed((HOST, 1), "bye", "peer", 0), "gave up (code 0): bye"),
            (Event.HandshakeFailed((HOST, 1), "not completed within 10s", "silent"), "not completed within 10s"),
        ],
    )
    async def test_a_failed_handshake_has_one_line_in_half_a_minute(self, event: Event, reason: str) -> None:
        with capture_logs() as logs:
            async with rig() as r:
                for _ in range(5):
                    await r.happen(event)
                    await r.later(7.0)
        lines = [line for line in logs if "Handshake failed" in line["event"]]
        assert [reason in line["reason"] for line in lines] == [True]
        with capture_logs() as logs:
            async with rig() as r:
                for pause in (1.0, 30.0, 0.0):
                    await r.happen(event)
                    await r.later(pause)
        assert [line.get("more") for line in logs if "Handshake failed" in line["event"]] == [None, 1]

    async def test_a_peer_that_is_refused_again_and_again_has_one_line(self) -> None:
        admission = Admission(anonymous=False)
        with capture_logs() as logs:
            async with rig() as r:
                r.sessions.use_admission(admission)
                for conn in range(1, 6):
                    await r.happen(connected(conn), closed(conn))
                await r.happen(connected(9, host="192.0.2.77"), closed(9))
        assert [line["event"] for line in logs if line["log_level"] != "debug"] == [
            f"Connection of {HOST}:{port_of(1)} rejected",
            f"Connection of 192.0.2.77:{port_of(9)} rejected",
        ]


async def test_events_of_clients_mean_nothing_to_a_server() -> None:
    async with rig() as r:
        await r.connect(1)
        events = [Event.Datagrams(1, [b"x"]), Event.ObservedAddress(1, ("192.0.2.1", 1)), Event.ConnectFailed(1, "x")]
        assert await r.happen(*events) == []


async def test_a_request_to_join_is_handed_on_and_is_no_session() -> None:
    asked: list[Event.JoinRequest] = []
    request = Event.JoinRequest(7, ("192.0.2.1", 4433), None, b"please")
    async with rig(join=asked.append) as sessions:
        assert await sessions.happen(request) == []
        assert asked == [request]
        assert not sessions.sessions.live
    async with rig() as sessions:
        assert await sessions.happen(request) == []
