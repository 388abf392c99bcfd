"""Log lines about dropped and relayed packets: one for each service and reason, at once and then seldom."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog

WATCHED = {
    "udp_send_errors": "The kernel refused to send {n} UDP datagrams",
    "udp_recv_errors": "The kernel failed {n} receives",
    "udp_dropped_source_port_zero": "Dropped {n} UDP datagrams from source port 0",
    "udp_dropped_version": "Dropped {n} packets of another QUIC version",
    "udp_dropped_too_small": "Dropped {n} UDP datagrams too small for QUIC",
    "udp_dropped_handshake": "Dropped {n} packets of handshakes: too many others wait",
    "handshake_refused_rate": "Refused {n} handshakes: their source starts too many",
    "handshake_refused_full": "Refused {n} handshakes: the server is full",
    "handshake_refused_chain": "Refused {n} handshakes: the client's certificates take too long to verify",
    "handshake_ignored_backpressure": "Ignored {n} handshakes: the control plane is behind",
    "handshake_ignored_source": "Ignored {n} handshakes: their source has too many under way",
    "connection_panics": "A defect of the engine ended {n} connections, or their signaling",
}
"""Counters whose growth is worth a line, with the line."""

OVERLOAD = {"send_queue_full", "receive_queue_full", "outbox_full", "no_lease"}
"""Reasons of drops that lie with the relay and not with a peer."""
AGAIN = 30.0
"""Seconds between two lines about drops of one service and reason."""
RELAYED = ("relayed_to_connector_bytes", "relayed_to_agent_bytes")

_log = structlog.get_logger()


class ServiceDrops(Protocol):
    """The counters of a service that are read."""

    @property
    def service(self) -> bytes: ...
    @property
    def drops(self) -> dict[str, int]: ...


class Numbers(Protocol):
    """The counters of an engine that are read."""

    def counters(self) -> dict[str, int]: ...
    def drops(self) -> dict[str, int]: ...
    def services(self) -> Sequence[ServiceDrops]: ...


class DropLog:
    """Logs the growth of the counters, and remembers their last values."""

    def __init__(self, engine: Numbers, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._drops: Mapping[str, int] = {}
        self._of_services: dict[bytes, Mapping[str, int]] = {}
        self._untold: Counter[tuple[bytes | None, str]] = Counter()
        """Drops by service and reason; None is no service."""
        self._told: dict[tuple[bytes | None, str], float] = {}
        self._counters: dict[str, int] = {}

    def tick(self) -> dict[str, int]:
        """Log the growth since the last call; returns the engine's counters."""
        self._count_drops()
        self._log_drops()
        counters = self._engine.counters()
        for name, text in WATCHED.items():
            total = counters.get(name, 0)
            new = total - self._counters.get(name, 0)
            if new > 0:
                _log.warning(text.format(n=new), counter=name, count=new, total=total)
        relayed = sum(counters.get(name, 0) - self._counters.get(name, 0) for name in RELAYED)
        if relayed > 0:
            _log.debug(f"Relayed {relayed} bytes")
        self._counters = counters
        return counters

    def _count_drops(self) -> None:
        drops = self._engine.drops()
        new = Counter({reason: total - self._drops.get(reason, 0) for reason, total in drops.items()})
        self._drops = drops
        if not any(new.values()):
            return
        found: dict[bytes, Mapping[str, int]] = {item.service: item.drops for item in self._engine.services()}
        for service, reasons in found.items():
            known = self._of_services.get(service, {})
            for reason, total in reasons.items():
                before = known.get(reason, 0)
                # A service that went and came back counts from nothing.
                fresh = total - before if total >= before else total
                if fresh:
                    self._untold[service, reason] += fresh
                    new[reason] -= fresh
        self._of_services = found
        for reason, count in new.items():
            if count > 0:
                self._untold[None, reason] += count

    def _log_drops(self) -> None:
        now = self._clock()
        self._told = {key: at for key, at in self._told.items() if now - at < AGAIN}
        for key in [key for key in self._untold if key not in self._told]:
            (service, reason), count = key, self._untold.pop(key)
            self._told[key] = now
            if service is None:
                # Drops that one peer causes by itself, such as netcheck's probes, are no trouble of the relay.
                write = _log.warning if reason in OVERLOAD else _log.info
                write(f"Dropped {count} datagrams: {reason}", reason=reason, count=count)
            else:
                name = service.decode(errors="replace")
                text = f"Dropped {count} datagrams for service {name!r}: {reason}"
                _log.warning(text, service=name, reason=reason, count=count)
