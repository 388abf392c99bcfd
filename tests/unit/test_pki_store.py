"""identity.db: what it takes over, what it survives, and what it says when it cannot be used."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from intermediate_server.errors import CertificateError
from intermediate_server.pki import Authority, database, keys
from intermediate_server.pki.database import FILE, StoreError
from intermediate_server.pki.store import Issued, Store, revoked_now
from intermediate_server.types import Role

NOW = keys.utc_now()
OLD: list[dict[str, object]] = [
    {
        "name": name,
        "role": role,
        "services": services,
        "serial": serial,
        "fingerprint": f"{number:064x}",
        "not_before": (NOW - timedelta(days=1)).isoformat(),
        "not_after": (NOW + timedelta(days=364)).isoformat(),
        "revoked_at": revoked,
    }
    for number, (name, role, services, serial, revoked) in enumerate(
        [
            ("laptop", "agent", ["web"], "a1", None),
            ("laptop", "agent", ["web", "db"], "a2", None),
            ("office", "connector", ["*"], "b1", NOW.isoformat()),
            ("relay.example.com", "server", [], "c1", None),
        ],
        start=1,
    )
]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    Authority(tmp_path / "state").init(now=NOW)
    return tmp_path / "state"


def write_old(state: Path, entries: list[dict[str, object]] = OLD) -> Path:
    path = state / "issued.json"
    path.write_text(json.dumps({"version": 1, "issued": entries}))
    return path


def test_the_index_of_an_earlier_version_is_taken_over_once(state: Path) -> None:
    (state / FILE).unlink()
    old = write_old(state)
    content = old.read_bytes()
    entries = Authority(state).entries()
    assert [(entry.name, entry.holder, entry.services, entry.serial) for entry in entries] == [
        ("laptop", "agent", ("web",), "a1"),
        ("laptop", "agent", ("web", "db"), "a2"),
        ("office", "connector", ("*",), "b1"),
        ("relay.example.com", "server", (), "c1"),
    ]
    assert [entry.revoked_at for entry in entries] == [None, None, NOW, None]
    assert [entry.ended_at for entry in entries] == [None, None, NOW, None]
    assert entries[0].identity == entries[1].identity
    assert entries[0].not_after == NOW + timedelta(days=364)
    assert not old.exists()
    assert old.with_name("issued.json.imported").read_bytes() == content
    assert Authority(state).entries() == entries
    assert [entry.serial for entry in Authority(state).revoke("laptop")] == ["a1", "a2"]


def test_a_takeover_that_was_killed_begins_again(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write_old(state)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        Authority(state).entries()
    assert old.exists()
    assert len(Authority(state).entries()) == len(OLD)
    assert not old.exists()


def test_an_old_index_that_comes_back_takes_no_revocation_back(state: Path) -> None:
    write_old(state)
    Authority(state).revoke("laptop")
    write_old(state)
    assert all(entry.revoked_at for entry in Authority(state).entries() if entry.name == "laptop")
    write_old(state, [{**entry, "revoked_at": NOW.isoformat()} for entry in OLD])
    assert all(entry.revoked_at for entry in Authority(state).entries())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"issued": 1}',
        b'{"issued": [{"name": "x"}]}',
        b"[" * 100_000,
        b"\xff",
        json.dumps({"issued": [{**OLD[0], "fingerprint": "00"}]}).encode(),
    ],
)
def test_a_damaged_old_index_is_an_error_and_stays(state: Path, content: bytes) -> None:
    index = state / "issued.json"
    index.write_bytes(content)
    authority = Authority(state)
    for act in (authority.entries, lambda: authority.issue(Role.AGENT, "a", services=["web"])):
        with pytest.raises(CertificateError, match="is damaged"):
            act()
    assert index.read_bytes() == content


def test_a_renewal_of_what_an_earlier_version_issued_needs_its_file(state: Path) -> None:
    write_old(state)
    authority = Authority(state)
    authority.issue(Role.AGENT, "other", services=["web"])
    authority.certificate_file("laptop").write_bytes(authority.certificate_file("other").read_bytes())
    with pytest.raises(CertificateError, match="is not the one issued"):
        authority.renew("laptop")


def test_only_its_owner_reads_it(state: Path) -> None:
    with Store(state) as store, store.transaction():
        for path in state.glob(f"{FILE}*"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(list(state.glob(f"{FILE}*"))) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
def test_what_root_makes_belongs_to_the_user_of_the_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, 4711, 4712)
    authority = Authority(tmp_path)
    authority.init()
    with Store(tmp_path) as store, store.transaction():
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"ca.key", "ca.pem", "crl.pem", ".lock", FILE, f"{FILE}-wal", f"{FILE}-shm"}
        assert {(path.stat().st_uid, path.stat().st_gid) for path in tmp_path.iterdir()} == {(4711, 4712)}


@pytest.mark.parametrize(
    "damage",
    [b"", b"not a database, but long enough to be looked at as one", "page", "half", "version", "services"],
    ids=str,
)
def test_a_damaged_database_is_one_error_and_a_repair_needs_no_restart(state: Path, damage: bytes | str) -> None:
    authority = Authority(state, Store(state))
    path = state / FILE
    for number in range(40):
        authority.issue(Role.AGENT, f"peer-{number}", services=["web"])
    good = path.with_name("good")
    with Store(state) as store, store.reading() as db:
        db.execute("VACUUM INTO ?", (str(good),))
    data = bytearray(good.read_bytes())
    if isinstance(damage, bytes):
        data = bytearray(damage)
    elif damage == "page":
        data[8192:12288] = os.urandom(4096)
    elif damage == "half":
        del data[len(data) // 2 :]
    bad = path.with_name("bad")
    bad.write_bytes(data)
    if damage in ("version", "services"):
        with sqlite3.connect(bad) as db:
            db.execute("PRAGMA user_version = 9" if damage == "version" else "UPDATE certificates SET services = '{'")
        db.close()
    for suffix in ("-wal", "-shm"):
        path.with_name(FILE + suffix).unlink(missing_ok=True)
    bad.replace(path)
    if damage == b"":
        assert authority.entries() == [], "an empty file is a new one"
        return
    with pytest.raises(StoreError, match=r"is damaged|newer version|cannot be used") as error:
        authority.revoke("peer-1")
    assert str(path) in str(error.value)
    with pytest.raises(StoreError):
        authority.entries()
    good.replace(path)
    assert len(authority.entries()) == 40
    authority.revoke("peer-1")


def test_a_full_disk_is_one_error_and_nothing_is_issued(state: Path) -> None:
    store = Store(state)
    authority = Authority(state, store)
    authority.issue(Role.AGENT, "a", services=["web"])
    with store.reading() as db:
        [pages] = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="make room on the disk"):
        for number in range(500):
            authority.issue(Role.AGENT, f"peer-{number}", services=["web"])
    names = {entry.name for entry in authority.entries()}
    assert {path.stem for path in (state / "issued").glob("*.pem")} == names
    with store.reading() as db:
        db.execute("PRAGMA max_page_count = 100000")
    authority.issue(Role.AGENT, "room", services=["web"])


def test_a_database_that_cannot_be_written_is_one_error(state: Path) -> None:
    store = Store(state)
    authority = Authority(state, store)
    authority.issue(Role.AGENT, "a", services=["web"])
    with store.reading() as db:
        db.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="readonly database; make room on the disk, or run as the owner"):
        authority.revoke("a")
    assert [entry.name for entry in authority.entries()] == ["a"]
    (state / FILE).rename(state / "aside")
    (state / FILE).mkdir()
    with pytest.raises(StoreError, match="cannot be opened"):
        authority.entries()


def test_a_database_that_somebody_holds_is_to_be_tried_again(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY", 0.1)
    authority = Authority(state)
    with Store(state) as store, store.transaction(), pytest.raises(StoreError, match=r"for 0\.1 s; try again"):
        authority.issue(Role.AGENT, "a", services=["web"])
    authority.issue(Role.AGENT, "a", services=["web"])


def test_what_expired_90_days_ago_goes(state: Path) -> None:
    authority = Authority(state)
    authority.issue(Role.AGENT, "short", services=["web"], days=1, now=NOW)
    authority.issue(Role.AGENT, "long", services=["web"], days=365, now=NOW)
    authority.issue(Role.AGENT, "lost", services=["web"], days=60, now=NOW)
    authority.revoke("lost", now=NOW)
    authority.issue(Role.AGENT, "other", services=["web"], now=NOW + timedelta(days=90))
    assert [entry.name for entry in authority.entries()] == ["short", "long", "lost", "other"]
    authority.issue(Role.AGENT, "another", services=["web"], now=NOW + timedelta(days=92))
    assert [entry.name for entry in authority.entries()] == ["long", "lost", "other", "another"]
    authority.issue(Role.AGENT, "last", services=["web"], now=NOW + timedelta(days=151))
    assert [entry.name for entry in authority.entries()] == ["long", "other", "another", "last"]
    crl = x509.load_pem_x509_crl(authority.crl_path.read_bytes())
    assert len(list(crl)) == 0, "what has gone from the index has left the list"


def newest(state: Path, name: str) -> Issued:
    with Store(state) as store:
        identity = store.holder_of_name(name, Role.AGENT)
        assert identity is not None
        entry = store.newest(identity)
        assert entry is not None
        return entry


def test_ephemeral_identities_are_due_when_they_were_away_for_too_long(state: Path) -> None:
    with Store(state) as store:
        for name, ephemeral in (("ci", timedelta(hours=1)), ("laptop", None)):
            identity = store.add_identity(
                name, Role.AGENT, services=["web"], lifetime=timedelta(days=7), now=NOW, ephemeral=ephemeral
            )
            key = keys.new_key()
            made = Authority(state).sign(
                key.public_key(), name=name, role=Role.AGENT, services=["web"], lifetime=timedelta(days=7), now=NOW
            )
            store.add_certificate(identity, [made], services=["web"], issuer=b"")
        assert store.idle(NOW + timedelta(minutes=59)) == []
        [due] = store.idle(NOW + timedelta(hours=1))
        assert due.name == "ci"
        store.touch([due.identity], now=NOW + timedelta(minutes=30))
        assert store.idle(NOW + timedelta(hours=1)) == []
        [due] = store.idle(NOW + timedelta(hours=2))
    [ended] = Authority(state).end(due.identity, "ephemeral", now=NOW + timedelta(hours=2))
    assert (ended.cause, ended.revoked_at) == ("ephemeral", NOW + timedelta(hours=2))
    with Store(state) as store:
        assert store.idle(NOW + timedelta(days=1)) == []


def test_a_renewal_keeps_the_identity_and_loses_against_a_revocation(state: Path) -> None:
    authority = Authority(state)
    first = authority.issue(Role.AGENT, "laptop", services=["web"])
    key = keys.load_key(authority.key_path("laptop"))
    signed = authority.sign(
        key.public_key(), name="laptop", role=Role.AGENT, services=["web"], lifetime=timedelta(days=7), now=NOW
    )
    second = authority.renewed(first, [signed])
    assert (second.identity, second.key) == (first.identity, first.key)
    assert newest(state, "laptop") == second
    assert keys.parse_certificates(second.chain, "")[0] == signed
    authority.revoke(second.serial, whole=True)
    assert all(entry.revoked_at for entry in authority.entries()), "its older certificate too"
    with pytest.raises(CertificateError, match="was revoked"):
        authority.renewed(first, [signed])
    with pytest.raises(CertificateError, match="was revoked"):
        authority.renew("laptop")


def test_a_certificate_of_another_ca_is_revoked_by_the_deny_list(state: Path) -> None:
    authority = Authority(state)
    key, now = keys.new_key(), NOW
    foreign = keys.sign_itself("elsewhere", key, not_before=now, not_after=now + timedelta(days=1))
    with Store(state) as store:
        identity = store.add_identity("laptop", Role.AGENT, services=["web"], lifetime=timedelta(days=1), now=now)
        entry = store.add_certificate(identity, [foreign], services=["web"], issuer=b"\1" * 32)
    authority.revoke("laptop", whole=True)
    denied = (state / "denied.txt").read_text()
    assert denied.startswith(f"{entry.fingerprint}  # laptop, revoked ")
    authority.revoke("laptop", whole=True)
    assert (state / "denied.txt").read_text() == denied, "once is enough"


def test_a_file_that_another_process_has_just_begun_holds_no_revocation_yet(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    assert revoked_now(tmp_path, NOW) == []
    assert (tmp_path / FILE).read_bytes() == b"", "a reader makes nothing"


def test_programs_that_begin_at_once_wait_for_each_other(tmp_path: Path) -> None:
    def begin(state: Path, together: threading.Barrier) -> None:
        with Store(state) as store:
            together.wait()
            assert store.entries() == []

    for number in range(30):
        state, together = tmp_path / str(number), threading.Barrier(4)
        state.mkdir()
        with ThreadPoolExecutor(4) as programs:
            for done in [programs.submit(begin, state, together) for _ in range(4)]:
                done.result()


OTHER_PROGRAM = """
import sys
from datetime import UTC, datetime
from intermediate_server.pki.store import Store

with Store(sys.argv[1]) as store:
    store.purge(now=datetime.now(UTC))
"""


def test_what_is_written_between_two_programs_and_two_users_in_one_of_them_is_kept(state: Path) -> None:
    """A relay has the file open on its thread for joins, and opens it again for a list of revocations."""
    with Store(state) as relay:
        relay.entries()
        with Store(state) as again:
            again.entries()
        subprocess.run([sys.executable, "-c", OTHER_PROGRAM, str(state)], check=True, timeout=60)
        relay.add_identity("laptop", Role.AGENT, services=["web"], lifetime=timedelta(days=7), now=NOW)
        with closing(sqlite3.connect(f"{(state / FILE).as_uri()}?mode=ro", uri=True)) as other:
            assert other.execute("SELECT name FROM identities").fetchall() == [("laptop",)]


def test_a_link_in_the_place_of_the_database_is_not_followed(state: Path, tmp_path: Path) -> None:
    (state / FILE).unlink()
    (state / FILE).symlink_to(tmp_path / "elsewhere")
    with Store(state) as store, pytest.raises(StoreError, match="cannot be opened"):
        store.entries()
    assert not (tmp_path / "elsewhere").exists()
