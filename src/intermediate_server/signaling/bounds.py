"""The bound of an offer that waits: it costs no more than an offer of use."""

from __future__ import annotations

from dataclasses import replace

from intermediate_server.signaling.candidates import MAX_FOUNDATION_BYTES
from intermediate_server.wire.signaling import Candidate, CandidateOffer, encode

MAX_UNCHANGED_BYTES = 8_192
"""Largest offer that is forwarded with the bytes behind its message; 32 candidates and a service need half of it.

A larger one loses its trailing bytes: two offers of 64 KiB would fill the queue of frames for a connector, and so
end the sessions that others have with it.
"""

MAX_SERVICE = 255
"""Characters of a service; none of more can be registered."""

_LONG = "?" * (MAX_FOUNDATION_BYTES + 1)
"""Stands for a foundation that is too long to be passed on."""


def bounded(offer: CandidateOffer, payload: bytes) -> bytes:
    """The payload of an offer, or an equally good one of at most 10 KiB: without trailing bytes, and with texts that
    are just long enough to be found too long."""
    if len(payload) <= MAX_UNCHANGED_BYTES:
        return payload
    listed = tuple(map(_shortened, offer.candidates))
    return encode(CandidateOffer(offer.session, offer.service[: MAX_SERVICE + 1], listed))


def _shortened(candidate: Candidate) -> Candidate:
    if len(candidate.foundation.encode()) <= MAX_FOUNDATION_BYTES:
        return candidate
    return replace(candidate, foundation=_LONG)
