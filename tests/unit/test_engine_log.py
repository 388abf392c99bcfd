"""The log of what the engine drops, without an engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from structlog.testing import capture_logs

from intermediate_server.server.engine_log import AGAIN, DropLog


@dataclass
class Service:
    service: bytes
    drops: dict[str, int]


@dataclass
class Numbers:
    totals: dict[str, int] = field(default_factory=dict)
    of_services: list[Service] = field(default_factory=list)

    def counters(self) -> dict[str, int]:
        return {}

    def drops(self) -> dict[str, int]:
        return dict(self.totals)

    def services(self) -> list[Service]:
        return self.of_services


def test_only_what_troubles_the_relay_or_a_service_is_a_warning() -> None:
    numbers = Numbers({"malformed": 1, "no_connector": 2, "outbox_full": 1}, [Service(b"pg", {"no_connector": 1})])
    with capture_logs() as lines:
        DropLog(numbers).tick()
    levels = {(line.get("service"), line["reason"]): line["log_level"] for line in lines}
    assert levels == {
        ("pg", "no_connector"): "warning",
        (None, "no_connector"): "info",
        (None, "malformed"): "info",
        (None, "outbox_full"): "warning",
    }


def test_a_drop_names_its_service_and_is_told_at_once_and_then_seldom() -> None:
    numbers, now = Numbers(), 0.0
    log = DropLog(numbers, clock=lambda: now)

    def told() -> list[str]:
        with capture_logs() as lines:
            log.tick()
        return [line["event"] for line in lines]

    assert told() == []
    numbers.totals = {"no_connector": 3, "malformed": 2}
    numbers.of_services = [Service(b"pg", {"no_connector": 3})]
    assert told() == ["Dropped 3 datagrams for service 'pg': no_connector", "Dropped 2 datagrams: malformed"]
    for total in (4, 5, 6):
        numbers.totals = {"no_connector": total, "malformed": 2}
        numbers.of_services = [Service(b"pg", {"no_connector": total})]
        assert told() == []
    now = AGAIN
    assert told() == ["Dropped 3 datagrams for service 'pg': no_connector"], "what was dropped meanwhile"
    now = 2 * AGAIN
    assert told() == []
    numbers.totals = {"no_connector": 8, "malformed": 2}
    numbers.of_services = [Service(b"pg", {"no_connector": 1}), Service(b"\xff", {"no_connector": 1})]
    assert told() == [
        "Dropped 1 datagrams for service 'pg': no_connector",
        "Dropped 1 datagrams for service '\ufffd': no_connector",
    ], "a service that came back counts from nothing"
