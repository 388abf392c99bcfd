"""The older server's metrics for existing dashboards; other metrics say the same.

Two of them, ``ztna_retry_tokens_validated`` and ``ztna_retry_token_failures``, have no ``_total``; Prometheus' client
cannot write a counter without it, so these two are exposed as untyped, which every query treats alike.
"""

from __future__ import annotations

from typing import Literal

SUMS: tuple[tuple[str, Literal["counter", "untyped"], str, tuple[str, ...]], ...] = (
    (
        "ztna_relay_bytes_total",
        "counter",
        "Bytes relayed in both directions, wrapper not counted.",
        ("relayed_to_connector_bytes", "relayed_to_agent_bytes"),
    ),
    (
        "ztna_datagrams_relayed_total",
        "counter",
        "Packets relayed in both directions.",
        ("relayed_to_connector_packets", "relayed_to_agent_packets"),
    ),
    (
        "ztna_retry_tokens_validated",
        "untyped",
        "Attempts that came back with a good Retry token.",
        ("retry_validated",),
    ),
    (
        "ztna_retry_token_failures",
        "untyped",
        "Retry tokens that could not be opened or have let in a handshake before.",
        ("retry_invalid",),
    ),
)
"""Name, kind and help of each, and the counters of the engine that it adds up."""
