"""Reminders of certificates that end soon, and files with others."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from intermediate_server import file_watch
from intermediate_server.client.lifetime import follow_files
from intermediate_server.client.relay import Opener, Relay
from intermediate_server.client.tasks import background
from intermediate_server.errors import ConnectError
from intermediate_server.pki import keys
from intermediate_server.pki.lifetime import MOST_REMINDERS, Reminders, days_left

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
BEGIN = NOW - timedelta(days=300)


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
    assert days_left(NOW - timedelta(days=365), NOW + left, NOW) == days


def test_a_short_life_is_reminded_of_in_its_last_quarter() -> None:
    begin = NOW - timedelta(days=5)
    assert days_left(begin, NOW + timedelta(days=2), NOW) is None
    assert days_left(begin, NOW + timedelta(days=1, hours=15), NOW) == 1


def test_each_key_is_reminded_once_a_day() -> None:
    reminders = Reminders()
    soon = NOW + timedelta(days=10)
    assert reminders.due(b"a", BEGIN, soon, NOW) == 10
    assert reminders.due(b"a", BEGIN, soon, NOW) is None
    assert reminders.due(b"b", BEGIN, soon, NOW) == 10
    assert reminders.due(b"c", BEGIN, NOW + timedelta(days=300), NOW) is None
    assert reminders.due(b"a", BEGIN, soon, NOW + timedelta(days=1)) == 9


def test_a_day_has_so_many_reminders() -> None:
    reminders = Reminders()
    soon = NOW + timedelta(days=1)
    due = [reminders.due(n.to_bytes(4), BEGIN, soon, NOW) for n in range(MOST_REMINDERS + 1)]
    assert due[-2:] == [1, None]


@dataclass
class Files:
    """A certificate and its key in files, and what was done about them."""

    cert: Path
    key: Path
    renewed: asyncio.Event = field(default_factory=asyncio.Event)
    keys: dict[str, keys.PrivateKey] = field(default_factory=dict)

    def write(self, name: str, *, halves: str = "both") -> None:
        """Write the pair of a new key, or half of it."""
        key = self.keys.setdefault(name, keys.new_key())
        now = keys.utc_now()
        made = keys.sign_itself(name, key, not_before=now, not_after=now + timedelta(days=1))
        if halves in ("both", "cert"):
            self.cert.write_bytes(keys.certificate_pem(made))
        if halves in ("both", "key"):
            self.key.write_bytes(keys.key_pem(key))
            self.key.chmod(0o600)


async def test_a_new_pair_is_taken_over_once_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "INTERVAL", 0.005)
    files = Files(tmp_path / "cert.pem", tmp_path / "key.pem")
    files.write("one")
    relay = Relay(server="relay:4433", cert_file=files.cert, key_file=files.key, verify=False)
    with capture_logs() as logs:
        async with asyncio.timeout(20), background(follow_files(relay, files.renewed.set)):

            async def warned() -> None:
                while not logs:  # noqa: ASYNC110  another task writes them
                    await asyncio.sleep(0.005)

            await asyncio.sleep(0)
            files.cert.write_bytes(files.cert.read_bytes()[:50])
            await warned()
            files.write("two", halves="cert")
            files.cert.touch()
            files.write("two", halves="key")
            await files.renewed.wait()
            files.renewed.clear()
            files.write("two", halves="key")
            files.cert.unlink()
            while len(logs) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            files.write("three")
            await files.renewed.wait()
    assert [line["event"] for line in logs] == ["The new certificate and key wait until they fit each other"] * 2


async def test_a_lost_connection_is_made_anew_with_the_last_pair_that_fitted(tmp_path: Path) -> None:
    used: list[object] = []

    class Engine:
        async def open(self, relay: Relay, *, at: tuple[str, int], tls: object) -> object:
            used.append(tls)
            return at

    engine: Any = Engine()
    files = Files(tmp_path / "cert.pem", tmp_path / "key.pem")
    relay = Relay(server="relay:4433", cert_file=files.cert, key_file=files.key, verify=False)
    opener = Opener(engine, relay)
    with pytest.raises(ConnectError, match="cannot use the certificates"):
        await opener(("192.0.2.1", 1))
    files.write("one")
    await opener(("192.0.2.1", 1))
    files.write("two", halves="cert")
    await opener(("192.0.2.1", 1))
    assert used[0] is used[1]
    files.write("two", halves="key")
    await opener(("192.0.2.1", 1))
    assert used[2] is not used[1]
