"""Files that systemd hands over."""

from __future__ import annotations

from pathlib import Path

import pytest

from intermediate_server.errors import CertificateError
from intermediate_server.pki import files


@pytest.mark.parametrize("read", [files.read_file, files.read_private_file])
def test_a_missing_one_names_the_line_that_the_unit_lacks(
    read: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(CertificateError) as caught:
        read(tmp_path / "key.pem", "private key")  # type: ignore[operator]
    assert str(caught.value) == (
        f"private key not found: {tmp_path}/key.pem; systemd has handed over no such credential: "
        "add LoadCredential=key.pem:FILE to the unit"
    )


def test_any_other_missing_file_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    with pytest.raises(CertificateError, match="check the path"):
        files.read_file(tmp_path / "key.pem", "private key")
