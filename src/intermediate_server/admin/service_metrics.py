"""The metrics of each service: relayed and dropped packets, and connectors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from intermediate_server.admin.families import family
from intermediate_server.engine import ServiceCounters

MAX_SERVICES = 200
"""Services that have their own label value; the rest are summed under ``other``."""

OTHER = "other"


class ServiceMetrics:
    """The metric families of all services, with a bounded number of samples."""

    def __init__(self) -> None:
        self._named: set[str] = set()

    def collect(self, services: Sequence[ServiceCounters]) -> Iterator[Metric]:
        """Yield the families of the services as the engine counts them now."""
        names = [item.service.decode("utf-8", "backslashreplace") for item in services]
        # A service keeps its own label while it lives, so that its series does not jump into "other" and back.
        self._named &= set(names)
        drops, packets, moved, connectors = (defaultdict[tuple[str, str], int](int) for _ in range(4))
        for item, name in zip(services, map(self._label, names), strict=True):
            for reason, count in item.drops.items():
                if count:
                    drops[name, reason] += count
            packets[name, "to_connector"] += item.to_connector_packets
            packets[name, "to_agent"] += item.to_agent_packets
            moved[name, "to_connector"] += item.to_connector_bytes
            moved[name, "to_agent"] += item.to_agent_bytes
            connectors[name, "healthy"] += item.healthy
            connectors[name, "stalled"] += item.connectors - item.healthy
        beyond = f"beyond {MAX_SERVICES} services summed as {OTHER!r}."
        for name, text, label, sums in (
            ("ztna_service_drops_total", "Datagrams dropped", "reason", drops),
            ("ztna_service_packets_total", "Packets relayed", "direction", packets),
            ("ztna_service_bytes_total", "Bytes of packets relayed", "direction", moved),
        ):
            help_text = f"{text}, by service and {label}; {beyond}"
            yield family(CounterMetricFamily, name, help_text, ["service", label], sums.items())
        help_text = f"Connectors by service and state; {beyond}"
        yield family(GaugeMetricFamily, "ztna_service_connectors", help_text, ["service", "state"], connectors.items())

    def _label(self, name: str) -> str:
        if name in self._named:
            return name
        if len(self._named) < MAX_SERVICES:
            self._named.add(name)
            return name
        return OTHER
