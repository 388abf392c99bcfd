"""The metrics: every counter of the engine and of the sessions, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from intermediate_server.admin.families import family, labelled
from intermediate_server.admin.join_metrics import join_metrics
from intermediate_server.admin.operations import Numbers, Operations
from intermediate_server.admin.service_metrics import ServiceMetrics
from intermediate_server.admin.signaling_metrics import signaling_metrics
from intermediate_server.admin.status import Status
from intermediate_server.compat import metrics as compat
from intermediate_server.sessions.totals import SessionTotals


@dataclass(frozen=True, slots=True)
class Simple:
    """A metric made of the engine's counters: one sample for each entry of ``sources``."""

    name: str
    kind: Literal["counter", "gauge", "untyped"]
    help: str
    sources: tuple[tuple[str, str], ...]
    """Pairs of label value and counter; counters with an empty label value are summed into a sample without labels."""
    label: str = ""
    scale: float = 1.0


def _one(
    name: str, kind: Literal["counter", "gauge", "untyped"], text: str, *counters: str, scale: float = 1.0
) -> Simple:
    return Simple(name, kind, text, tuple(("", counter) for counter in counters), scale=scale)


SIMPLE: tuple[Simple, ...] = (
    _one("ztna_active_connections", "gauge", "Admitted connections alive.", "connections"),
    _one("ztna_uptime_seconds", "gauge", "Seconds since the engine started.", "uptime_us", scale=1e-6),
    *(_one(name, kind, text, *counters) for name, kind, text, counters in compat.SUMS),
    _one("ztna_retry_sent_total", "counter", "Retry packets sent (RFC 9000 section 8.1.2).", "retry_sent"),
    Simple(
        "ztna_relayed_packets_total",
        "counter",
        "Packets relayed, by direction.",
        (("to_connector", "relayed_to_connector_packets"), ("to_agent", "relayed_to_agent_packets")),
        "direction",
    ),
    Simple(
        "ztna_relayed_bytes_total",
        "counter",
        "Bytes relayed, by direction.",
        (("to_connector", "relayed_to_connector_bytes"), ("to_agent", "relayed_to_agent_bytes")),
        "direction",
    ),
    Simple(
        "ztna_handshakes_total",
        "counter",
        "Connection attempts by how they ended.",
        (
            ("ok", "handshake_ok"),
            ("failed", "handshake_failed"),
            ("timeout", "handshake_timeout"),
            ("refused_chain", "handshake_refused_chain"),
            ("refused_rate", "handshake_refused_rate"),
            ("refused_full", "handshake_refused_full"),
            ("ignored_backpressure", "handshake_ignored_backpressure"),
            ("ignored_source", "handshake_ignored_source"),
        ),
        "outcome",
    ),
    Simple(
        "ztna_connections_total",
        "counter",
        "Connections by stage: accepted into a handshake, admitted, closed.",
        (("accepted", "accepted"), ("admitted", "admitted"), ("closed", "closed")),
        "stage",
    ),
    Simple(
        "ztna_join_attempts_total",
        "counter",
        "Attempts to join by how they ended.",
        (
            ("replied", "join_replies"),
            ("refused_rate", "join_refused_rate"),
            ("refused_full", "join_refused_full"),
            ("refused_blocked", "join_refused_blocked"),
            ("refused_backpressure", "join_refused_backpressure"),
            ("ignored_source", "join_ignored_source"),
            ("handshake_failed", "join_handshake_failed"),
            ("abandoned", "join_abandoned"),
            ("malformed", "join_malformed"),
            ("timeout", "join_timeouts"),
        ),
        "outcome",
    ),
    _one("ztna_joins_under_way", "gauge", "Joins under way.", "joins"),
    _one("ztna_half_open", "gauge", "Handshakes under way.", "half_open"),
    _one("ztna_icmp_sent_total", "counter", "ICMP answers sent for packets that could not be delivered.", "icmp_sent"),
    _one("ztna_translated_total", "counter", "Packets whose inner address was translated.", "translated"),
    _one("ztna_leases", "gauge", "Inner addresses leased, or resting after their agent left.", "leases"),
    _one("ztna_outbox_depth", "gauge", "Events that wait for the control plane.", "outbox_depth"),
    _one("ztna_outbox_high_water", "gauge", "The most events that ever waited.", "outbox_high_water"),
    Simple(
        "ztna_udp_datagrams_total",
        "counter",
        "UDP datagrams by direction.",
        (("received", "udp_rx_datagrams"), ("sent", "udp_tx_datagrams")),
        "direction",
    ),
    Simple(
        "ztna_udp_bytes_total",
        "counter",
        "UDP payload bytes by direction.",
        (("received", "udp_rx_bytes"), ("sent", "udp_tx_bytes")),
        "direction",
    ),
    Simple(
        "ztna_udp_errors_total",
        "counter",
        "Sends and receives that the kernel refused.",
        (("sent", "udp_send_errors"), ("received", "udp_recv_errors")),
        "direction",
    ),
    Simple(
        "ztna_udp_dropped_total",
        "counter",
        "UDP datagrams dropped beneath QUIC.",
        (
            ("source_port_zero", "udp_dropped_source_port_zero"),
            ("version", "udp_dropped_version"),
            ("too_small", "udp_dropped_too_small"),
            ("handshake", "udp_dropped_handshake"),
            ("socket_full", "udp_dropped_socket_full"),
        ),
        "reason",
    ),
    _one(
        "ztna_udp_send_waits_total",
        "counter",
        "Sends that found their socket full and wait for room.",
        "udp_send_waits",
    ),
    _one(
        "ztna_connection_panics_total",
        "counter",
        "Connections, or their signaling, ended by a defect in the engine.",
        "connection_panics",
    ),
    _one(
        "ztna_connections_unacknowledged_total",
        "counter",
        "Connections closed because their peers acknowledged nothing of thousands of packets.",
        "closed_unacknowledged",
    ),
    _one("ztna_address_changes_total", "counter", "Changes of a peer's address.", "address_changes"),
    _one("ztna_engine_ticks_total", "counter", "Turns of the engine's housekeeping.", "ticks"),
)

TOTALS: tuple[tuple[str, str, Callable[[SessionTotals], int]], ...] = (
    ("ztna_registrations_total", "Registrations granted.", lambda totals: totals.registrations),
    ("ztna_registration_rejections_total", "Registrations denied.", lambda totals: totals.denied),
    ("ztna_control_ignored_total", "Registration messages wrong in length.", lambda totals: totals.control_ignored),
    (
        "ztna_control_dropped_total",
        "Registration messages above a connection's rate.",
        lambda totals: totals.control_dropped,
    ),
    (
        "ztna_never_registered_total",
        "Connections closed for registering nothing.",
        lambda totals: totals.never_registered,
    ),
    ("ztna_address_reports_total", "QAD messages sent.", lambda totals: totals.address_reports),
)


DEPRECATED = {
    "ztna_registrations_revoked_total": "ztna_registrations_withdrawn_total",
    "ztna_registrations_over_limit_total": "ztna_registrations_limited_total",
    "ztna_connections_rejected_total": "ztna_connections_refused_total",
    "ztna_connections_disconnected_total": "ztna_connections_cut_total",
}
"""Former names, which are exported beside the present ones."""


class ServerCollector(Collector):
    """Reads everything at the moment of a scrape."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._services = ServiceMetrics()

    def describe(self) -> list[Metric]:
        """Nothing: the registry need not collect at registration, before the engine runs."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric, as :class:`prometheus_client.CollectorRegistry` asks for it."""
        numbers, state = self._operations.numbers(), self._operations.state
        for simple in SIMPLE:
            yield _family(simple, numbers.counters)
        for name, text, read in TOTALS:
            yield CounterMetricFamily(name, text, value=read(numbers.totals))
        yield CounterMetricFamily(
            "ztna_event_errors_total", "Events whose handler failed.", value=numbers.dispatch_errors
        )
        yield CounterMetricFamily("ztna_reloads_total", "Reloads applied.", value=state.reloads)
        yield CounterMetricFamily(
            "ztna_reload_failures_total", "Reloads refused; nothing changed.", value=state.reload_failures
        )
        yield from _access(numbers, state)
        yield labelled(
            GaugeMetricFamily,
            "ztna_connections",
            "Live connections by identity.",
            "identity",
            {"proven": numbers.totals.proven, "anonymous": numbers.totals.anonymous},
        )
        counts = numbers.counts
        yield labelled(
            GaugeMetricFamily,
            "ztna_registered",
            "Live registrations by role.",
            "role",
            {"agent": counts.agents, "connector": counts.connectors},
        )
        yield GaugeMetricFamily("ztna_services", "Services with an agent or a connector.", value=counts.services)
        if state.certificate_not_after is not None:
            yield GaugeMetricFamily(
                "ztna_certificate_expiry_timestamp_seconds",
                "When the server certificate expires, Unix time.",
                value=state.certificate_not_after.timestamp(),
            )
        yield HistogramMetricFamily(
            "ztna_event_loop_lag_seconds",
            "How late the control plane's event loop ran a timer.",
            buckets=numbers.lag.cumulative(),
            sum_value=numbers.lag.total,
        )
        yield labelled(
            CounterMetricFamily, "ztna_drops_total", "Datagrams dropped, by reason.", "reason", numbers.drops
        )
        yield family(
            CounterMetricFamily,
            "ztna_drops_by_class_total",
            "Datagrams dropped, by reason and identity class of the sender.",
            ["reason", "class"],
            numbers.drops_by_class.items(),
        )
        yield from self._services.collect(numbers.services)
        yield from signaling_metrics(numbers.signaling, numbers.signaling_states)
        yield from join_metrics(numbers.joins)


def _access(numbers: Numbers, status: Status) -> Iterator[Metric]:
    totals = numbers.totals
    for name, text, label, values in (
        ("ztna_registrations_revoked_total", "Registrations revoked.", "cause", totals.revoked),
        ("ztna_registrations_over_limit_total", "Registrations that a limit denied.", "limit", totals.over_limit),
        ("ztna_connections_rejected_total", "Connections rejected for who they are.", "cause", totals.rejected),
        (
            "ztna_connections_disconnected_total",
            "Live connections closed as access ended.",
            "cause",
            totals.disconnected,
        ),
        (
            "ztna_records_lost_total",
            "Audit lines and writes of usage and addresses lost or late.",
            "record",
            numbers.lost,
        ),
    ):
        former = DEPRECATED.get(name)
        yield labelled(CounterMetricFamily, name, text, label, values)
        if former is not None:
            yield labelled(CounterMetricFamily, former, f"Deprecated: {name}.", label, values)
    yield GaugeMetricFamily(
        "ztna_anonymous_clients",
        "Connections without a client certificate that have a registration; 0 ends a migration.",
        value=numbers.anonymous_clients,
    )
    if status.crl_next_update is not None:
        yield GaugeMetricFamily(
            "ztna_crl_next_update_timestamp_seconds",
            "When the revocation list should be replaced, Unix time.",
            value=status.crl_next_update.timestamp(),
        )


def _family(simple: Simple, counters: Mapping[str, int]) -> Metric:
    if simple.label:
        metric = _make(simple, labels=[simple.label])
        for value, counter in simple.sources:
            metric.add_sample(simple.name, {simple.label: value}, counters.get(counter, 0) * simple.scale)
        return metric
    metric = _make(simple, labels=[])
    metric.add_sample(simple.name, {}, sum(counters.get(counter, 0) for _, counter in simple.sources) * simple.scale)
    return metric


def _make(simple: Simple, *, labels: list[str]) -> Metric:
    match simple.kind:
        case "counter":
            return CounterMetricFamily(simple.name, simple.help, labels=labels)
        case "gauge":
            return GaugeMetricFamily(simple.name, simple.help, labels=labels)
        case "untyped":
            return Metric(simple.name, simple.help, "unknown")
