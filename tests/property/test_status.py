"""Status properties: whatever peers and files are called, health and metrics stay well-formed."""

from __future__ import annotations

import json
from datetime import UTC

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.relay import new_status
from tests.unit.test_admin import Admin, Service

reasons = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=20), st.integers(0, 2**40), max_size=3)
names = st.binary(max_size=255)

ADMIN = Admin()
REGISTRY = CollectorRegistry(auto_describe=False)
REGISTRY.register(ADMIN.collector)


@given(st.text(), st.text(), st.lists(st.text(), max_size=3), st.none() | st.datetimes(timezones=st.just(UTC)))
def test_readyz_is_json_whatever_it_tells(error: str, external: str, addresses: list[str], expiry: object) -> None:
    status = new_status()
    status.reload_error = error
    status.external_ip = external
    status.addresses = tuple(addresses)
    status.certificate_not_after = expiry  # type: ignore[assignment]  # a datetime or None
    details = status.details(0)
    assert json.loads(json.dumps(details)) == details
    assert details["external_ip"] == external


@given(st.dictionaries(names, reasons, max_size=6))
def test_metrics_can_be_read_whatever_services_are_called(services: dict[bytes, dict[str, int]]) -> None:
    ADMIN.serve(*(Service(name, drops) for name, drops in services.items()))
    text = generate_latest(REGISTRY).decode()
    shown = [
        (sample.labels["service"], sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "ztna_service_drops_total"
    ]
    assert sum(value for _, value in shown) == sum(sum(map(float, drops.values())) for drops in services.values())
    known = {name.decode("utf-8", "backslashreplace") for name in services}
    assert {service for service, _ in shown} <= known
