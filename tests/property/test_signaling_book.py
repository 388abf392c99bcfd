"""Random histories of the book: nobody but the two parties of a session hears of it or acts on it."""

from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property.signaling_model import Model


def step(model: Model) -> None:
    """One operation, the likely ones more often."""
    steps: list[Callable[[], None]] = [model.offer, model.route_found, model.answer] * 8
    steps += [model.time_passes, model.result] * 3
    steps += [model.error, model.start, model.invalid, model.revoked, model.closed]
    if model.random.random() < 0.02:
        steps = [model.refuse_all, model.peer_not_reading]
    model.random.choice(steps)()


# A history is a seed and a length, so that a failing one shrinks to its shortest beginning.
@settings(max_examples=300)
@given(st.integers(0, 2**32), st.integers(1, 300))
def test_every_history_stays_within_the_sessions_of_its_parties(seed: int, length: int) -> None:
    model = Model(random.Random(seed))
    for _ in range(length):
        step(model)
        model.bounds_hold()
        model.the_next_expiry_is_that_of_the_first()
    model.finish()
