"""What the tools that make and check artefacts share."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = "opt/intermediate-server"
"""The environment with the program, in the root of an image or of a host with a package."""


def version() -> str:
    """The version of this tree."""
    return str(tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["workspace"]["package"]["version"])


def only(directory: Path, pattern: str) -> Path:
    """The file of a directory that is meant."""
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"expected one {pattern} in {directory}, found {[path.name for path in found]}")
    return found[0]


def check(good: bool, otherwise: str) -> None:
    """End with what is wrong."""
    if not good:
        raise SystemExit(otherwise)
