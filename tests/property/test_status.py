"""Status properties: whatever peers and files are called, health and metrics stay well-formed."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC
from html.parser import HTMLParser
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.admin import Admin, Service, new_status
from typing_extensions import override

from intermediate_server.admin import ServerCollector
from intermediate_server.admin.page import render

reasons = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=20), st.integers(0, 2**40), max_size=3)
names = st.binary(max_size=255)

ADMIN = Admin()
REGISTRY = CollectorRegistry(auto_describe=False)
REGISTRY.register(ServerCollector(ADMIN.operations))


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


class Page(HTMLParser):
    """The tags of a page and the texts between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    @override
    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags[tag] += 1

    @override
    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def state(text: str, *, identity: bool) -> dict[str, Any]:
    status = new_status()
    status.policy = status.reload_error = text
    status.warnings = (text,)
    who = {"fingerprint": text, "subject": text, "names": [text], "name_count": 1} if identity else None
    client = {
        "conn": 7,
        "address": "192.0.2.1:4",
        "since": "2026-06-01T00:00:00+00:00",
        "identity": who,
        "certificate_ends": None if who is None else "2026-12-01",
        "registrations": [{"role": "agent", "service": text, "rule": text}],
    }
    return {**status.details(0, 1), "clients": {"total": 9, "clients": [client]}}


@given(st.text() | st.sampled_from(["<script>x</script>", "</td>&amp;\"'>", "<!--", "\x1b[2J\u202e"]), st.booleans())
def test_nothing_that_is_shown_becomes_a_tag(text: str, identity: bool) -> None:
    page = Page(render(state(text, identity=identity)))
    assert page.tags == Page(render(state("plain", identity=identity))).tags
    assert all(part.isprintable() for part in page.texts if part != "\n")
    assert any(text in part for part in page.texts) or not text.isprintable()


def test_the_page_tells_who_is_there_and_what_for() -> None:
    texts = Page(render(state("x", identity=False))).texts
    for part in ("Connections: 9, the oldest 1 are shown", "anonymous", "agent of x by x", "192.0.2.1:4"):
        assert part in texts
    assert "x (x), sha256 x" in Page(render(state("x", identity=True))).texts
