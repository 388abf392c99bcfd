"""Tells the log what the engine dropped and relayed: one line for each reason at each look, with how much."""

from __future__ import annotations

from typing import Protocol

import structlog

WATCHED = {
    "udp_send_errors": "The kernel refused to send {n} UDP datagrams",
    "udp_recv_errors": "The kernel failed {n} receives",
    "udp_dropped_source_port_zero": "Dropped {n} UDP datagrams from source port 0",
    "udp_dropped_version": "Dropped {n} packets of another QUIC version",
    "udp_dropped_too_small": "Dropped {n} UDP datagrams too small for QUIC",
    "handshake_refused_rate": "Refused {n} handshakes: their source starts too many",
    "handshake_refused_full": "Refused {n} handshakes: the server is full",
    "handshake_refused_chain": "Refused {n} handshakes: the client's certificates take too long to verify",
    "handshake_ignored_backpressure": "Ignored {n} handshakes: the control plane is behind",
    "handshake_ignored_source": "Ignored {n} handshakes: their source has too many under way",
    "connection_panics": "A defect of the engine ended {n} connections",
}
"""Counters whose growth is worth a line, with the line."""

RELAYED = ("relayed_to_connector_bytes", "relayed_to_agent_bytes")

_log = structlog.get_logger()


class Numbers(Protocol):
    """What is read of an engine."""

    def counters(self) -> dict[str, int]: ...
    def drops(self) -> dict[str, int]: ...


class DropLog:
    """Remembers what was already told."""

    def __init__(self, engine: Numbers) -> None:
        self._engine = engine
        self._drops: dict[str, int] = {}
        self._counters: dict[str, int] = {}

    def tick(self) -> dict[str, int]:
        """Log what is new since the last call; returns the engine's counters."""
        drops = self._engine.drops()
        for reason, total in drops.items():
            new = total - self._drops.get(reason, 0)
            if new > 0:
                _log.warning(f"Dropped {new} datagrams: {reason}", reason=reason, count=new, total=total)
        self._drops = drops
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
