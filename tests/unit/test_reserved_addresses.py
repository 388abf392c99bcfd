"""Own inner addresses: first come for good, over restarts, full disks and damage."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from pathlib import Path

import pytest

from intermediate_server.engine import Event
from intermediate_server.server import reserved_addresses as module
from intermediate_server.server.reserved_addresses import FILE, Addresses

ANN, BOB = b"a" * 32, b"b" * 32
ANNS, BOBS = b"\x64\x40\x00\x07", b"\xfd" + bytes(15)


def own(identity: bytes, *texts: str) -> Event.ReservedAddresses:
    return Event.ReservedAddresses(identity, list(texts))


async def written(directory: Path, *, days: int = 20_000) -> None:
    """A file with an address of each."""
    addresses = Addresses(directory, clock=lambda: days * 86_400.0)
    addresses.note(own(ANN, "100.64.0.7"))
    addresses.note(own(BOB, "fd00::"))
    await addresses.aclose()
    assert addresses.trouble is None


def known(directory: Path) -> Addresses:
    found = Addresses(directory)
    found.known.sort()
    return found


async def test_they_survive_a_restart_and_belong_to_the_first(tmp_path: Path) -> None:
    await written(tmp_path)
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    again = known(tmp_path)
    assert (again.known, again.in_part) == ([(ANN, ANNS), (BOB, BOBS)], False)
    again.note(own(BOB, "100.64.0.7"))
    await again.aclose()
    assert known(tmp_path).known == [(ANN, ANNS), (BOB, BOBS)]


async def test_what_was_saved_is_there_after_a_crash(tmp_path: Path) -> None:
    crashed = Addresses(tmp_path)
    crashed.note(own(ANN, "100.64.0.7"))
    await crashed.save()
    crashed.note(own(BOB, "fd00::"))
    assert known(tmp_path).known == [(ANN, ANNS)]


async def test_the_last_day_of_use_is_kept_and_never_goes_back(tmp_path: Path) -> None:
    for day in (20_000, 20_007, 19_000):
        await written(tmp_path, days=day)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as connection:
        assert connection.execute("SELECT DISTINCT used FROM own").fetchall() == [(20_007,)]


def damage_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = b"\xee" * (len(data) - len(data) // 2)
    path.write_bytes(data)


def give_to_another(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE own SET identity = ? WHERE address = ?", (BOB, ANNS))


def make_newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA user_version = 7")


async def test_a_file_of_a_newer_version_is_left_to_it(tmp_path: Path) -> None:
    await written(tmp_path)
    make_newer(tmp_path / FILE)
    before = (tmp_path / FILE).read_bytes()
    older = known(tmp_path)
    assert older.trouble is not None
    assert "a newer intermediate-server has written it, in version 7" in older.trouble
    older.note(own(BOB, "100.64.0.9"))
    await older.aclose()
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda path: path.write_bytes(b"no database" * 1000), []),
        (lambda path: path.write_bytes(b""), []),
        (damage_page, []),
        (give_to_another, [(BOB, BOBS)]),
    ],
    ids=["overwritten", "emptied", "half", "altered"],
)
async def test_a_damaged_file_gives_nobody_what_was_anothers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object, left: list[tuple[bytes, bytes]]
) -> None:
    await written(tmp_path)
    for suffix in ("-wal", "-shm"):
        assert not (tmp_path / (FILE + suffix)).exists()
    assert callable(damage)
    damage(tmp_path / FILE)
    before = (tmp_path / FILE).read_bytes()
    capsys.readouterr()
    damaged = known(tmp_path)
    assert damaged.in_part
    assert damaged.known == left
    assert damaged.trouble is not None
    assert "no identity is given a new own inner address until" in damaged.trouble
    assert capsys.readouterr().out.count("known in part") <= 1, "one line"
    # It is left to who looks at it, also by what comes after.
    damaged.note(own(BOB, "100.64.0.9"))
    await damaged.aclose()
    assert (tmp_path / FILE).read_bytes() == before
    assert known(tmp_path).in_part, "until somebody has looked"
    (tmp_path / FILE).unlink()
    assert not known(tmp_path).in_part


async def test_a_write_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await written(tmp_path)
    addresses = known(tmp_path)
    put = Addresses._write

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Addresses, "_write", full)
    addresses.note(own(ANN, "fd00::a"))
    for _ in range(3):
        await addresses.save()
    assert addresses.failures == 3
    assert "cannot be written" in (addresses.trouble or "")
    monkeypatch.setattr(Addresses, "_write", put)
    await addresses.save()
    assert addresses.trouble is None
    await addresses.aclose()
    assert len(known(tmp_path).known) == 3


async def test_a_directory_that_takes_no_file_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Addresses) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Addresses, "_make", full)
    addresses = Addresses(tmp_path)
    assert not addresses.in_part
    addresses.note(own(ANN, "100.64.0.7"))
    await addresses.save()
    assert addresses.failures == 1
    monkeypatch.undo()
    await addresses.aclose()
    assert known(tmp_path).known == [(ANN, ANNS)]


async def test_only_a_full_file_lets_unused_addresses_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = Addresses(tmp_path, clock=lambda: 19_000 * 86_400.0)
    addresses.note(own(ANN, "100.64.0.7"))
    await addresses.aclose()
    addresses = Addresses(tmp_path, clock=lambda: 20_000 * 86_400.0)
    addresses.note(own(BOB, "fd00::"))
    await addresses.aclose()
    assert known(tmp_path).known == [(ANN, ANNS), (BOB, BOBS)], "there is room"
    monkeypatch.setattr(module, "MAX_OWNERS", 2)
    assert known(tmp_path).known == [(BOB, BOBS)]
    monkeypatch.setattr(module, "MAX_OWNERS", 1)
    full = known(tmp_path)
    assert full.known == [(BOB, BOBS)]
    assert full.trouble is not None
