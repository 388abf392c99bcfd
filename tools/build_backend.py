"""The build backend that pip calls for the source archive: maturin, once all that it needs is there.

Without cargo maturin tries to download Rust, and a missing compiler or cmake ends in hundreds of lines of its output.
"""

import os
import shutil
from typing import Any

import maturin
from maturin import build_editable, build_sdist, build_wheel, prepare_metadata_for_build_wheel

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

get_requires_for_build_sdist = maturin.get_requires_for_build_sdist
prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel


def missing() -> list[str]:
    """The names of what the build needs and this host lacks."""
    compiler = os.environ.get("CC", "").split() or [name for name in ("cc", "gcc", "clang") if shutil.which(name)]
    found = {
        "cargo (Rust 1.91 or newer)": shutil.which("cargo"),
        "a C compiler": compiler and shutil.which(compiler[0]),
        "cmake": shutil.which("cmake"),
    }
    return [name for name, path in found.items() if not path]


def check() -> None:
    """End the build with one line when something is missing."""
    lacking = missing()
    if lacking:
        raise SystemExit(
            f"error: building intermediate-server from source takes {', '.join(lacking)}, not found here; install that,"
            " or take the wheel, which is for Linux on x86_64 with glibc 2.17 or newer"
        )


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """As maturin's, after a look at the host."""
    check()
    needed: list[str] = maturin.get_requires_for_build_wheel(config_settings)
    return needed


get_requires_for_build_editable = get_requires_for_build_wheel
