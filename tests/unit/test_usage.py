"""Monthly usage: kept over restarts, and never the end of the server."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from intermediate_server.access.usage import FILE, MonthlyUsage
from intermediate_server.errors import ConfigError


def moment(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def rows(directory: Path, columns: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(directory / FILE)) as connection:
        return connection.execute(f"SELECT {columns} FROM volume ORDER BY month").fetchall()


class Clock:
    def __init__(self, text: str) -> None:
        self.now = moment(text)

    def __call__(self) -> float:
        return self.now


async def test_counts_survive_a_restart(tmp_path: Path) -> None:
    usage = MonthlyUsage(tmp_path)
    usage.add("ann", 5)
    usage.add("ann", 6)
    usage.add("bob", 2**40)
    assert usage.used("ann") == 11
    await usage.save()
    usage.add("ann", 1)
    await usage.aclose()
    again = MonthlyUsage(tmp_path)
    assert (again.used("ann"), again.used("bob"), again.used("eve")) == (12, 2**40, 0)
    assert again.lost is None
    await again.aclose()
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


async def test_what_was_not_closed_keeps_what_was_saved(tmp_path: Path) -> None:
    crashed = MonthlyUsage(tmp_path)
    crashed.add("ann", 7)
    await crashed.save()
    crashed.add("ann", 100)
    again = MonthlyUsage(tmp_path)
    assert again.used("ann") == 7
    await again.aclose()
    crashed._connection.close()


async def test_a_month_begins_at_nought_in_utc(tmp_path: Path) -> None:
    clock = Clock("2026-12-31T23:59:59")
    usage = MonthlyUsage(tmp_path, clock=clock)
    usage.add("ann", 5)
    assert usage.month_end() == datetime(2027, 1, 1, tzinfo=UTC)
    clock.now += 1
    assert usage.used("ann") == 0
    usage.add("ann", 3)
    await usage.aclose()
    assert rows(tmp_path, "*") == [("2026-12", "ann", 5), ("2027-01", "ann", 3)]


async def test_a_clock_that_is_put_right_brings_the_counts_back(tmp_path: Path) -> None:
    clock = Clock("2026-12-05T00:00:00")
    usage = MonthlyUsage(tmp_path, clock=clock)
    usage.add("ann", 5)
    await usage.aclose()
    # A machine without a clock of its own starts in the past.
    clock.now = 0.0
    usage = MonthlyUsage(tmp_path, clock=clock)
    usage.add("ann", 1)
    clock.now = moment("2026-12-06T00:00:00")
    assert usage.used("ann") == 5
    usage.add("ann", 2)
    clock.now = 0.0
    assert usage.used("ann") == 1
    clock.now = moment("2026-12-07T00:00:00")
    assert usage.used("ann") == 7, "counted and not yet written"
    await usage.save()
    clock.now = moment("2026-11-07T00:00:00")
    assert usage.used("ann") == 0
    usage._connection.execute("DROP TABLE volume")
    clock.now = 0.0
    assert usage.used("ann") == 0, "what cannot be read counts from zero"
    assert usage.failures == 1
    await usage.aclose()


async def test_old_months_go(tmp_path: Path) -> None:
    months = [f"2025-{number:02d}" for number in range(1, 13)] + ["2026-01", "2026-03"]
    for month in months:
        usage = MonthlyUsage(tmp_path, clock=Clock(f"{month}-05T00:00:00"))
        usage.add("ann", 1)
        await usage.aclose()
    assert rows(tmp_path, "month") == [(month,) for month in months[1:]]


async def test_a_damaged_file_is_moved_aside(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"this is no database, " * 100)
    usage = MonthlyUsage(tmp_path)
    assert usage.lost is not None
    assert "count from zero" in usage.lost
    usage.add("ann", 5)
    await usage.aclose()
    (aside,) = tmp_path.glob(f"{FILE}.damaged-*")  # noqa: ASYNC240
    assert aside.read_bytes().startswith(b"this is no database")
    again = MonthlyUsage(tmp_path)
    assert (again.used("ann"), again.lost) == (5, None)
    await again.aclose()


async def test_a_file_of_a_newer_version_is_left_to_it(tmp_path: Path) -> None:
    first = MonthlyUsage(tmp_path)
    first.add("ann", 5)
    await first.aclose()
    with contextlib.closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as connection:
        connection.execute("PRAGMA user_version = 7")
    before = (tmp_path / FILE).read_bytes()
    older = MonthlyUsage(tmp_path)
    assert older.lost is not None
    assert "is of a newer version (7); upgrade intermediate-server" in older.lost
    older.add("ann", 1)
    assert older.used("ann") == 1
    await older.aclose()
    assert (tmp_path / FILE).read_bytes() == before


async def test_a_file_damaged_inside_is_moved_aside(tmp_path: Path) -> None:
    usage = MonthlyUsage(tmp_path)
    for number in range(2_000):
        usage.add(f"{number:064x}", number)
    await usage.aclose()
    content = bytearray((tmp_path / FILE).read_bytes())
    content[8_192:16_384] = bytes(8_192)
    (tmp_path / FILE).write_bytes(content)
    again = MonthlyUsage(tmp_path)
    assert again.lost is not None
    await again.aclose()


async def test_a_failed_write_is_tried_again(tmp_path: Path) -> None:
    usage = MonthlyUsage(tmp_path)
    usage.add("ann", 5)
    usage._connection.execute("PRAGMA query_only = ON")
    await usage.save()
    assert usage.failures == 1
    usage.add("ann", 6)
    usage._connection.execute("PRAGMA query_only = OFF")
    await usage.aclose()
    again = MonthlyUsage(tmp_path)
    assert again.used("ann") == 11
    await again.aclose()


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--state-dir"):
        MonthlyUsage(tmp_path / "missing")
