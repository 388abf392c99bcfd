"""The build backend that pip calls for the source archive: maturin, once all that it needs is there.

Without cargo maturin tries to download Rust, an old one cannot read the lock file, and a missing compiler or cmake ends
in hundreds of lines of its output.
"""

import os
import re
import shutil
import subprocess
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


OLDEST_RUST = (1, 91)
"""As Cargo.toml has it; an older cargo may not even read that."""


def new_enough(cargo: str | None) -> bool:
    """Whether there is a cargo, and it is not one of an old distribution."""
    if cargo is None:
        return False
    told = subprocess.run([cargo, "--version"], check=False, capture_output=True, text=True).stdout
    version = re.match(r"cargo (\d+)\.(\d+)", told)
    return version is not None and (int(version[1]), int(version[2])) >= OLDEST_RUST


def missing() -> list[str]:
    """The names of what the build needs and this host lacks."""
    compiler = os.environ.get("CC", "").split() or [name for name in ("cc", "gcc", "clang") if shutil.which(name)]
    found = {
        "cargo (Rust {}.{} or newer)".format(*OLDEST_RUST): new_enough(shutil.which("cargo")),
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
