"""Health and metrics over HTTP, without a server around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from tests.unit.admin import Admin, Service

from intermediate_server.admin.metrics import SIMPLE
from intermediate_server.admin.service_metrics import MAX_SERVICES
from intermediate_server.engine import Engine


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    made = Admin()
    async with made.http:
        yield made


class TestHealth:
    async def test_healthz(self, admin: Admin) -> None:
        answer = await admin.http.get("/healthz")
        assert (answer.status_code, answer.text) == (200, "ok\n")
        assert answer.headers["content-type"].startswith("text/plain")
        assert (await admin.http.head("/healthz")).status_code == 200

    async def test_livez_fails_when_the_engine_stands_still(self, admin: Admin) -> None:
        assert (await admin.http.get("/livez")).status_code == 200
        admin.status.turning = lambda: False
        stuck = await admin.http.get("/livez")
        assert (stuck.status_code, stuck.text) == (503, "the engine has stopped turning\n")

    async def test_readyz(self, admin: Admin) -> None:
        admin.status.addresses = ("0.0.0.0:4433",)
        admin.status.certificate_not_after = datetime(2030, 1, 1, tzinfo=UTC)
        answer = await admin.http.get("/readyz")
        assert answer.status_code == 200
        body = answer.json()
        assert body["ready"] is True
        assert body["addresses"] == ["0.0.0.0:4433"]
        assert body["certificate_expires"] == "2030-01-01T00:00:00+00:00"
        assert body["client_auth"] == "required"

    @pytest.mark.parametrize("why", ["starting", "draining", "stuck"])
    async def test_readyz_says_no(self, admin: Admin, why: str) -> None:
        assert (await admin.http.get("/readyz")).status_code == 200
        match why:
            case "starting":
                admin.status.accepting = False
            case "draining":
                admin.status.draining = True
            case "stuck":
                admin.status.turning = lambda: False
        answer = await admin.http.get("/readyz")
        assert (answer.status_code, answer.json()["ready"]) == (503, False)
        assert (await admin.http.get("/healthz")).status_code == 200, "the process is well"

    async def test_a_refused_reload_shows(self, admin: Admin) -> None:
        admin.status.reload_error = "config.toml: no"
        assert "config.toml: no" in (await admin.http.get("/readyz")).text

    @pytest.mark.parametrize(
        "path",
        ["/", "/nothing", "/docs", "/redoc", "/openapi.json", "/healthz/../x", "/%00", "/" + "a" * 9000],
    )
    async def test_anything_else_is_not_found(self, admin: Admin, path: str) -> None:
        assert (await admin.http.get(path)).status_code == 404

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
    async def test_reading_changes_nothing(self, admin: Admin, method: str) -> None:
        for path in ("/healthz", "/livez", "/readyz", "/metrics", "/status", "/anonymous"):
            assert (await admin.http.request(method, path)).status_code == 405


class TestMetrics:
    async def test_the_names_of_the_older_server_are_kept(self, admin: Admin) -> None:
        admin.engine.counter_values |= {
            "connections": 2,
            "uptime_us": 1_500_000,
            "relayed_to_connector_bytes": 10,
            "relayed_to_agent_bytes": 20,
            "relayed_to_connector_packets": 1,
            "relayed_to_agent_packets": 2,
            "retry_validated": 5,
            "retry_invalid": 6,
        }
        admin.totals.registrations, admin.totals.denied = 7, 8
        answer = await admin.http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        for line in (
            "ztna_active_connections 2.0",
            "ztna_uptime_seconds 1.5",
            "ztna_relay_bytes_total 30.0",
            "ztna_registrations_total 7.0",
            "ztna_registration_rejections_total 8.0",
            "ztna_datagrams_relayed_total 3.0",
            "ztna_signaling_sessions_total 0.0",
            "ztna_retry_tokens_validated 5.0",
            "ztna_retry_token_failures 6.0",
        ):
            assert line in answer.text.splitlines()

    async def test_what_the_control_plane_counts(self, admin: Admin) -> None:
        admin.totals.proven, admin.totals.anonymous = 3, 4
        admin.totals.control_ignored, admin.totals.control_dropped = 5, 6
        admin.totals.never_registered, admin.totals.address_reports = 7, 8
        admin.status.reloads = 9
        assert await admin.value("ztna_connections", identity="proven") == 3
        assert await admin.value("ztna_connections", identity="anonymous") == 4
        assert await admin.value("ztna_control_ignored_total") == 5
        assert await admin.value("ztna_control_dropped_total") == 6
        assert await admin.value("ztna_never_registered_total") == 7
        assert await admin.value("ztna_address_reports_total") == 8
        assert await admin.value("ztna_reloads_total") == 9
        assert await admin.value("ztna_event_errors_total") == 4

    async def test_what_was_relayed_for_a_service_and_by_whom(self, admin: Admin) -> None:
        admin.serve(
            Service(
                b"web", {}, 3, 2, to_connector_packets=5, to_connector_bytes=500, to_agent_packets=7, to_agent_bytes=900
            )
        )
        assert await admin.value("ztna_service_packets_total", service="web", direction="to_connector") == 5
        assert await admin.value("ztna_service_packets_total", service="web", direction="to_agent") == 7
        assert await admin.value("ztna_service_bytes_total", service="web", direction="to_connector") == 500
        assert await admin.value("ztna_service_bytes_total", service="web", direction="to_agent") == 900
        assert await admin.value("ztna_service_connectors", service="web", state="healthy") == 2
        assert await admin.value("ztna_service_connectors", service="web", state="stalled") == 1

    async def test_drops_by_reason(self, admin: Admin) -> None:
        admin.engine.drop_values = {"no_connector": 3, "malformed": 0}
        assert await admin.value("ztna_drops_total", reason="no_connector") == 3
        assert await admin.value("ztna_drops_total", reason="malformed") == 0

    async def test_loop_lag_is_a_histogram(self, admin: Admin) -> None:
        admin.lag.observe(0.002)
        assert await admin.value("ztna_event_loop_lag_seconds_bucket", le="0.0025") == 1
        assert await admin.value("ztna_event_loop_lag_seconds_bucket", le="0.001") == 0
        assert await admin.value("ztna_event_loop_lag_seconds_count") == 1

    async def test_no_peer_can_make_more_series_than_the_bound(self, admin: Admin) -> None:
        reasons = {"no_connector": 1, "stalled": 0}
        admin.serve(*(Service(f"service {number}".encode(), reasons) for number in range(5 * MAX_SERVICES)))
        samples = await admin.samples()
        shown = {dict(labels)["service"]: value for (name, labels), value in samples.items() if "service_drops" in name}
        assert len(shown) == MAX_SERVICES + 1
        assert shown["other"] == 4 * MAX_SERVICES
        assert sum(shown.values()) == 5 * MAX_SERVICES, "nothing is lost"
        assert len(samples) < 8 * MAX_SERVICES + 200

    async def test_a_service_keeps_its_own_series_while_it_lives(self, admin: Admin) -> None:
        many = [Service(b"%d" % number, {"x": 1}) for number in range(MAX_SERVICES)]
        admin.serve(*many)
        await admin.samples()
        admin.serve(Service(b"newcomer", {"x": 1}), *many)
        samples = await admin.samples()
        assert ("ztna_service_drops_total", frozenset({("service", "newcomer"), ("reason", "x")})) not in samples
        admin.serve(Service(b"newcomer", {"x": 1}), *many[1:])
        assert await admin.value("ztna_service_drops_total", service="newcomer", reason="x") == 1

    @pytest.mark.parametrize(
        "name", [b"", b"\xff\xfe", b'"} 1\nforged_total 9', "\N{SNOWMAN}".encode(), b"\\n", b"a" * 255, b"\0\r\x1b[2J"]
    )
    async def test_weird_services_cannot_forge_a_sample(self, admin: Admin, name: bytes) -> None:
        admin.serve(Service(name, {"x": 5}))
        samples = await admin.samples()
        found = [labels for (metric, labels) in samples if metric == "ztna_service_drops_total"]
        assert [dict(labels)["service"] for labels in found] == [name.decode("utf-8", "backslashreplace")]
        assert not any(metric.startswith("forged") for metric, _ in samples)

    async def test_every_counter_that_is_shown_is_one_the_engine_has(self) -> None:
        engine = Engine()
        try:
            counters = engine.counters()
        finally:
            engine.close(0)
        assert {counter for simple in SIMPLE for _, counter in simple.sources} <= counters.keys()
