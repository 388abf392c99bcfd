"""How many connections fit, and who gets a place."""

from __future__ import annotations

import os
import re
from collections import Counter
from datetime import timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.registering import peer
from tests.unit.sessions_rig import ack, certificate, closed, connected, nack, rig
from tests.unit.settings import load
from typing_extensions import override

from intermediate_server.access.capacity import Capacity, Places, available_memory, fit
from intermediate_server.cli import main
from intermediate_server.config import Settings
from intermediate_server.engine import Event
from intermediate_server.pki import keys
from intermediate_server.policy import Allow, CertificatePolicy, Decision, Limits
from intermediate_server.types import Address, ConnectionId, Registration, Role
from intermediate_server.wire import close_codes

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "intermediate-server.service"


def settings(**flags: str) -> Settings:
    return load(flags, env={"HOME": "/nonexistent"}, files=())


def test_the_defaults_fit_into_the_memory_of_the_unit() -> None:
    match = re.search(r"^MemoryMax=(\d+)G$", UNIT.read_text(), re.MULTILINE)
    assert match is not None
    asked = settings()
    numbers = asked.max_connections, asked.connections_per_source, asked.connections_per_identity
    assert fit(asked, int(match[1]) << 30) == Capacity(*numbers)


def test_what_does_not_fit_is_lowered_and_said_where_it_was_asked_for() -> None:
    small = fit(settings(), 512 << 20)
    assert small == Capacity(3_932, 189, 94), "nobody has asked for the defaults"
    asked = dict.fromkeys(("max_connections", "connections_per_source", "connections_per_identity"), "1000000")
    found = fit(settings(**asked), 512 << 20)
    assert (found.connections, found.per_source, found.per_identity) == (3_932, 189, 94)
    assert [text.split(" ", 1)[0] for text in found.warnings] == [name.replace("_", "-") for name in asked]
    assert "is 94 and not 1000000" in found.warnings[2]
    assert fit(settings(memory_budget="512MiB")) == small
    assert fit(settings(send_queue_bytes="64MiB", receive_queue_bytes="64MiB"), 128 << 20).per_identity == 1
    queues = {"send_queue_bytes": "16KiB", "receive_queue_bytes": "16KiB"}
    assert fit(settings(**asked, **queues), 512 << 20).per_source == 1_985, "small queues make room"


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "4096\n", "memory.max": "8192\n"}, 4096),
        ("0::/a\n", {"a/memory.max": "max\n"}, None),
        ("0::/\n", {"memory.max": "5000\n"}, 5000),
        ("5:cpu:/c\n4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "7000\n"}, 7000),
        ("4:cpu,memory:/a/b\n", {"memory/a/memory.limit_in_bytes": "7000\n", "a/memory.max": "1\n"}, 7000),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("nonsense\n", {"memory.max": "5000\n"}, None),
        ("0::/../..\n", {}, None),
    ],
)
def test_a_cgroup_may_allow_less_than_the_machine_has(
    tmp_path: Path, groups: str, files: dict[str, str], limit: int | None
) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "cgroups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert available_memory(tmp_path, tmp_path / "cgroups") == (limit or machine)
    assert available_memory(tmp_path / "nothing") == machine


def test_check_config_says_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["check-config", "--state-dir", str(tmp_path), "--memory-budget", "64MiB"]
    assert main(arguments) == 0
    assert "warning" not in capsys.readouterr().err
    assert main([*arguments, "--max-connections", "20000"]) == 0
    assert "warning: max-connections is 491 and not 20000" in capsys.readouterr().err


def test_sources_are_networks() -> None:
    for host in (*HOSTS, "2001:db8:0:1ff:ffff::", "::1", "0.0.0.0", "255.255.255.255"):
        length = 56 if ":" in host else 32
        assert Address(ip_address(host), 1).source == str(ip_network((host, length), strict=False))


HOSTS = ("198.51.100.1", "198.51.100.2", "2001:db8::1", "2001:db8:0:ff::2", "2001:db8:0:100::1")
SOURCES = (0, 1, 2, 2, 3)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 9), st.sampled_from([None, "one", "two"]), st.integers(0, len(HOSTS) - 1), st.booleans()
        ),
        max_size=60,
    ),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_places_are_as_many_as_there_are(
    happened: list[tuple[int, str | None, int, bool]], per_source: int, per_identity: int
) -> None:
    places = Places(per_source=per_source, per_identity=per_identity)
    live: dict[int, tuple[str | None, int]] = {}
    for conn, key, host, leaves in happened:
        if leaves or conn in live:
            places.close(ConnectionId(conn))
            live.pop(conn, None)
            continue
        sources = Counter(source for _, source in live.values())
        keys = Counter(known for known, _ in live.values() if known is not None)
        full = sources[SOURCES[host]] >= per_source or (key is not None and keys[key] >= per_identity)
        assert (places.take(peer(conn, key, host=HOSTS[host])) is not None) is full
        if not full:
            live[conn] = key, SOURCES[host]
    for conn in list(live):
        places.close(ConnectionId(conn))
    assert not places._sources
    assert not places._identities
    assert not places._held


@pytest.mark.parametrize(("per_source", "per_identity"), [(9, 2), (2, 9)])
def test_a_newer_certificate_has_one_place_more(per_source: int, per_identity: int) -> None:
    places = Places(per_source=per_source, per_identity=per_identity)
    for conn in (1, 2):
        assert places.take(peer(conn, "ann")) is None
    assert places.take(peer(3, "ann")) is not None
    assert places.take(peer(4, "ann", serial=2)) is None
    assert places.has_surplus(peer(4, "ann", serial=2))
    assert places.take(peer(5, "ann", serial=3)) is not None, "one at a time"
    if per_source == 2:
        assert places.take(peer(6, "bob", serial=4)) is not None, "it replaces nothing"
    places.close(ConnectionId(1))
    assert not places.has_surplus(peer(4, "ann", serial=2))
    assert places.take(peer(7, "ann", serial=3)) is None


def test_the_connection_that_a_newer_one_replaces_is_an_older_one_of_the_same_host() -> None:
    places = Places(per_source=9, per_identity=9)
    places.take(peer(1, "ann", host="192.0.2.9"))
    places.take(peer(2, "ann"))
    places.take(peer(3, "ann", serial=2))
    places.take(peer(4, "bob"))
    assert places.predecessor(peer(3, "ann", serial=2)) == 2
    assert places.predecessor(peer(2, "ann")) is None
    assert places.predecessor(peer(5)) is None
    places.close(ConnectionId(2))
    assert places.predecessor(peer(3, "ann", serial=2)) == 1


@pytest.mark.parametrize("limited", ["identity", "rule", "nothing"])
async def test_both_connections_of_a_renewal_are_there_for_ten_seconds(limited: str) -> None:
    key = keys.new_key()
    old, new = (certificate("agent.web.ztna", key=key, begins=timedelta(seconds=begins)) for begins in (-60, -30))
    places = Places(per_source=9, per_identity=1 if limited == "identity" else 9)

    class OneConnection(CertificatePolicy):
        @override
        def decide(self, registration: Registration) -> Decision:
            return Allow(limits=Limits(connections=1 if limited == "rule" else None))

    async with rig(OneConnection(anonymous=True), places=places) as r:
        for conn, shown in ((1, old), (2, new)):
            await r.happen(connected(conn, shown))
            assert ack(conn, "web") in await r.register(conn, Role.AGENT, "web")
        refused = await r.happen(connected(3, new))
        if limited == "identity":
            assert refused[-1][:3] == ("close", 3, close_codes.TOO_MANY_CONNECTIONS)
        elif limited == "rule":
            assert nack(3, "web") in await r.register(3, Role.AGENT, "web")
        await r.happen(closed(3))
        assert [command for command in await r.later(9.0) if command[0] == "close"] == []
        ended = [command[1:3] for command in await r.later(2.0) if command[0] == "close"]
        assert ended == ([] if limited == "nothing" else [(1, close_codes.TOO_MANY_CONNECTIONS)])
        if limited != "nothing":
            assert r.totals.disconnected["replaced"] == 1
            await r.happen(closed(1))
            assert [command for command in await r.later(30.0) if command[0] == "close"] == []
            assert ack(2, "web") in await r.register(2, Role.AGENT, "web")


async def test_a_place_is_free_again_once_its_connection_is_gone() -> None:
    async with rig(places=Places(per_source=2, per_identity=9), registration_timeout=1.0) as r:
        for conn in (1, 2):
            await r.connect(conn)
        assert (await r.connect(3))[-1][:3] == ("close", 3, close_codes.TOO_MANY_CONNECTIONS)
        assert len(await r.connect(4, host="192.0.2.2")) == 1, "its address"
        # One that has moved holds its place where it came from.
        await r.happen(Event.AddressChanged(1, ("192.0.2.3", 1)))
        assert (await r.connect(5))[-1][0] == "close"
        assert [command[1] for command in await r.later(2.0) if command[0] == "close"] == [1, 2, 4]
        assert (await r.connect(6))[-1][0] == "close", "they are on their way out"
        await r.happen(closed(3), closed(5), closed(6))
        assert (await r.connect(7))[-1][0] == "close", "these had none"
        await r.happen(closed(1))
        assert len(await r.connect(8)) == 1
        assert r.totals.rejected["connections"] == 4
