"""The audit log: whole lines, in order, and never in the way of the relay."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from intermediate_server import audit
from intermediate_server.audit import Audit
from intermediate_server.errors import ConfigError
from intermediate_server.types import Address, ConnectionId, Identity, Peer, Role

ANN = Identity(
    fingerprint="ab" * 32,
    key_hash=bytes(32),
    subject="CN=ann",
    dns_names=tuple(f"agent.s{number}.ztna" for number in range(300)),
    uris=("spiffe://example.org/ann",),
    not_before=datetime(2026, 1, 1, tzinfo=UTC),
    not_after=datetime(2027, 1, 1, tzinfo=UTC),
)
PEER = Peer(ConnectionId(7), Address(ip_address("198.51.100.1"), 4_000), ANN)
STRANGER = Peer(ConnectionId(8), Address(ip_address("2001:db8::1"), 4_000), None)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_line_says_who_what_and_why(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log = Audit(path)
    log.record("denied", PEER, cause="policy", role=Role.AGENT, service="we\nb\x1b", rule="r", reason="why")
    log.record("rejected", STRANGER, cause="anonymous", reason="none")
    await log.aclose()
    first, second = lines(path)
    assert first["identity"] == {
        "fingerprint": "ab" * 32,
        "subject": "CN=ann",
        "names": list(ANN.dns_names[: audit.MAX_NAMES]),
        "name_count": 301,
    }
    assert (first["address"], first["role"], first["service"]) == ("198.51.100.1:4000", "agent", "we\nb\x1b")
    assert (first["rule"], first["reason"]) == ("r", "why")
    assert datetime.fromisoformat(first["time"]).tzinfo is not None
    assert (second["identity"], second["role"], second["address"]) == (None, None, "[2001:db8::1]:4000")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_lines_are_appended_in_order(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    path.write_text('{"conn": 0}\n')
    log = Audit(path)
    for number in range(1_000):
        log.record("allowed", Peer(ConnectionId(number + 1), STRANGER.address, None), cause="policy")
        if number % 100 == 0:
            await asyncio.sleep(0.01)
    await log.aclose()
    assert [line["conn"] for line in lines(path)] == list(range(1_001))
    assert log.lost == 0


async def test_a_rotated_file_is_left_for_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log = Audit(path)
    log.record("allowed", STRANGER, cause="policy", service="one")
    path.rename(tmp_path / "old")
    log.reopen(path)
    log.record("allowed", STRANGER, cause="policy", service="two")
    with pytest.raises(ConfigError, match="--audit-log"):
        log.reopen(tmp_path / "missing" / "audit")
    log.record("allowed", STRANGER, cause="policy", service="three")
    await log.aclose()
    assert [line["service"] for line in lines(path)][-2:] == ["two", "three"]


async def test_a_full_disk_costs_counted_lines_and_nothing_else() -> None:
    log = Audit(Path("/dev/full"))
    for _ in range(3):
        log.record("allowed", STRANGER, cause="policy")
    await log.aclose()
    assert log.lost == 3


async def test_a_line_that_was_torn_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit"
    log = Audit(path)
    real, calls = os.write, 0

    def write(file: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")
        return real(file, data[: len(data) - 10] if calls == 1 else data)

    monkeypatch.setattr(os, "write", write)
    log.record("allowed", STRANGER, cause="policy", service="whole")
    log.record("allowed", STRANGER, cause="policy", service="torn")
    await asyncio.wait_for(_written(log), 10)
    log.record("allowed", STRANGER, cause="policy", service="after")
    await log.aclose()
    assert log.lost == 1
    good = []
    for line in path.read_text().splitlines():
        try:
            good.append(json.loads(line)["service"])
        except ValueError:
            continue
    assert good == ["whole", "after"]


async def _written(log: Audit) -> None:
    while log._writer is not None:  # noqa: ASYNC110 - nobody tells of a write
        await asyncio.sleep(0.001)


async def test_lines_beyond_what_may_wait_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_WAITING", 1_000)
    log = Audit(tmp_path / "audit")
    for _ in range(100):
        log.record("allowed", STRANGER, cause="policy")
    await log.aclose()
    assert 0 < log.lost < 100
    assert len(lines(tmp_path / "audit")) == 100 - log.lost


async def test_a_pipe_that_nobody_reads_does_not_hold_up_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="cannot be opened"):
        Audit(tmp_path / "pipe")


async def test_without_a_file_nothing_is_kept() -> None:
    log = Audit()
    log.record("allowed", STRANGER, cause="policy")
    await log.aclose()
    assert log.lost == 0
