"""The engine: a QUIC endpoint on a thread of its own that moves every datagram.

This package is the only importer of the compiled module, and lists the names that the rest of the server needs.
"""

from intermediate_server._engine import (
    Backend,
    ClientTls,
    Command,
    ConnectConfig,
    Engine,
    EngineError,
    Event,
    Forward,
    ListenConfig,
    ServerTls,
    ServiceCounters,
    Target,
    Totals,
    TunMap,
    inner_address,
    service_addresses,
)

__all__ = [
    "Backend",
    "ClientTls",
    "Command",
    "ConnectConfig",
    "Engine",
    "EngineError",
    "Event",
    "Forward",
    "ListenConfig",
    "ServerTls",
    "ServiceCounters",
    "Target",
    "Totals",
    "TunMap",
    "inner_address",
    "service_addresses",
]
