"""Files of keys and certificates, replaced whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from intermediate_server.errors import CertificateError
from intermediate_server.pki import files


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_path_that_is_no_ordinary_file_stays_what_it_is(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Such as /dev/stdout: by root a rename would put a file in the place of the device."""
    path = tmp_path / "profile.ztna"
    make(path)
    before = path.stat()
    with pytest.raises(CertificateError, match="cannot be written: it is no ordinary file"):
        files.write_file(path, b"key", private=True)
    assert path.stat() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_what_it_leads_to_is_not(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"theirs")
    path = tmp_path / "profile.ztna"
    path.symlink_to(other)
    files.write_file(path, b"key", private=True)
    assert (path.is_symlink(), path.read_bytes(), other.read_bytes()) == (False, b"key", b"theirs")
