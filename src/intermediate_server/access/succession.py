"""Connections that move to a newer certificate: for a while an identity has one more than it may.

The old connection is let go once the new one carries everything, so both are there for some seconds.
"""

from __future__ import annotations

from collections.abc import Iterable

from intermediate_server.types import Identity

HAND_OVER = 10.0
"""Seconds for which an identity may have one connection more; the engine's time of the same name."""


def succeeds(identity: Identity | None, others: Iterable[Identity | None]) -> bool:
    """Whether a certificate begins later than every other of its identity's connections."""
    if identity is None:
        return False
    return all(other is not None and other.not_before < identity.not_before for other in others)
