"""Names of services in a hosts file that others write to as well."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from intermediate_server.client.service_names import listed, without

OTHERS = b"127.0.0.1 localhost\n# BEGIN docker\n10.0.0.1 db\n# END docker\n"
RUNNING = b"# BEGIN intermediate-server lo\n198.18.0.1 a.ztna\n# END intermediate-server lo\n"
KILLED = b"# BEGIN intermediate-server gone7\n198.18.0.2 b.ztna\n# END intermediate-server gone7\n"
OPEN = b"# BEGIN intermediate-server gone8\n198.18.0.3 c\n"
WEB = {"web": ["198.18.9.9", "fd64::9"]}
BLOCK = b"# BEGIN intermediate-server ztna7\n198.18.9.9 web.ztna\nfd64::9 web.ztna\n# END intermediate-server ztna7\n"


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_bytes(OTHERS)
    return path


def test_names_come_and_go(hosts: Path) -> None:
    hosts.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(hosts, 1234, 2345)
    before = hosts.stat()
    with listed(hosts, "ztna7", WEB):
        assert hosts.read_bytes() == OTHERS + BLOCK
        now = hosts.stat()
        assert (now.st_mode, now.st_uid, now.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
        assert now.st_ino != before.st_ino, "replaced whole"
    assert hosts.read_bytes() == OTHERS
    assert os.listdir(hosts.parent) == ["hosts"]  # noqa: PTH208


def test_blocks_of_killed_agents_go_and_those_of_others_stay(hosts: Path) -> None:
    hosts.write_bytes(KILLED + RUNNING + BLOCK + OTHERS + OPEN.rstrip(b"\n"))
    with listed(hosts, "ztna7", WEB):
        assert hosts.read_bytes() == RUNNING + OTHERS + OPEN + BLOCK
        hosts.write_bytes(hosts.read_bytes() + b"10.0.0.2 later\n")
    assert hosts.read_bytes() == RUNNING + OTHERS + OPEN + b"10.0.0.2 later\n"


@pytest.mark.parametrize("ending", [b"\r\n", b" \n", b"\r"])
def test_an_editor_may_change_the_ends_of_lines(hosts: Path, ending: bytes) -> None:
    others = OTHERS.replace(b"\n", ending)
    hosts.write_bytes((OTHERS + BLOCK).replace(b"\n", ending))
    with listed(hosts, "ztna7", WEB):
        assert hosts.read_bytes() in (others + BLOCK, others + b"\n" + BLOCK)
        hosts.write_bytes(hosts.read_bytes().rstrip(b"\n"))
    assert hosts.read_bytes() in (others, others + b"\n")


def test_a_link_stays_a_link(hosts: Path) -> None:
    link = hosts.parent / "link"
    link.symlink_to(hosts)
    with listed(link, "ztna7", WEB):
        assert link.is_symlink()
        assert hosts.read_bytes() == OTHERS + BLOCK


def test_a_file_that_cannot_be_replaced_is_one_warning(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs, listed(tmp_path / "none", "ztna7", WEB):
        pass
    assert [line["log_level"] for line in logs] == ["warning"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("none")])
def test_what_is_no_ordinary_file_stays_what_it_is(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A device such as /dev/null would be replaced, and a pipe be read for ever."""
    path = tmp_path / "hosts"
    make(path)
    before = path.lstat()
    with structlog.testing.capture_logs() as logs, listed(path, "ztna7", WEB):
        pass
    assert [line["log_level"] for line in logs] == ["warning"]
    assert path.lstat() == before


def test_a_name_that_no_host_has_is_left_out(hosts: Path) -> None:
    with structlog.testing.capture_logs() as logs, listed(hosts, "ztna7", {"a b\n": ["198.18.0.1"], **WEB}):
        assert hosts.read_bytes() == OTHERS + BLOCK
    assert len(logs) == 1


@given(st.binary(max_size=200))
def test_foreign_text_stays_as_it_is(text: bytes) -> None:
    assert without(text, lambda _: True) == text
