"""Reminders of certificates that end soon."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from intermediate_server.pki.lifetime import MOST_REMINDERS, Reminders, days_left

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("left", "days"),
    [
        (timedelta(days=31), None),
        (timedelta(days=30), 30),
        (timedelta(days=1, hours=23), 1),
        (timedelta(seconds=1), 0),
        (timedelta(0), None),
        (timedelta(days=-1), None),
    ],
)
def test_thirty_days_before_the_end(left: timedelta, days: int | None) -> None:
    assert days_left(NOW + left, NOW) == days


def test_each_key_is_reminded_once_a_day() -> None:
    reminders = Reminders()
    soon = NOW + timedelta(days=10)
    assert reminders.due(b"a", soon, NOW) == 10
    assert reminders.due(b"a", soon, NOW) is None
    assert reminders.due(b"b", soon, NOW) == 10
    assert reminders.due(b"c", NOW + timedelta(days=300), NOW) is None
    assert reminders.due(b"a", soon, NOW + timedelta(days=1)) == 9


def test_a_day_has_so_many_reminders() -> None:
    reminders = Reminders()
    soon = NOW + timedelta(days=1)
    due = [reminders.due(n.to_bytes(4), soon, NOW) for n in range(MOST_REMINDERS + 1)]
    assert due[-2:] == [1, None]
