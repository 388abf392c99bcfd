"""What pip says where it builds the source archive on a host that lacks something."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from tools import build_backend

ROOT = Path(__file__).resolve().parents[2]


def tool(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory of programs, with all that is needed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    tool(tmp_path, "cargo", "echo 'cargo 1.95.0 (abcdef123 2026-01-01)'")
    tool(tmp_path, "cc", "")
    tool(tmp_path, "cmake", "")
    return tmp_path


def test_nothing_is_missing(path: Path) -> None:
    assert path.exists()
    build_backend.check()


@pytest.mark.parametrize(
    ("name", "called"),
    [("cargo", "cargo (Rust 1.91 or newer)"), ("cc", "a C compiler"), ("cmake", "cmake")],
)
def test_what_is_missing_is_one_line(path: Path, name: str, called: str) -> None:
    (path / name).unlink()
    with pytest.raises(SystemExit, match="or take the wheel") as refused:
        build_backend.check()
    said = str(refused.value)
    assert said.startswith(f"error: building intermediate-server from source takes {called}, not found here; ")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "cargo", ["echo 'cargo 1.90.0 (840b83a10 2025-07-30)'", "echo 'no default toolchain' >&2; exit 1", "echo cargo"]
)
def test_an_old_rust_is_none(path: Path, cargo: str) -> None:
    tool(path, "cargo", cargo)
    assert build_backend.missing() == ["cargo (Rust 1.91 or newer)"]


def test_the_oldest_rust_is_that_of_the_workspace() -> None:
    package = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["workspace"]["package"]
    assert package["rust-version"] == "{}.{}".format(*build_backend.OLDEST_RUST)
