"""Check what is about to be published: what the wheel and the sdist hold, and that the sdist installs and runs.

The environment is empty and outside the checkout, so that nothing of the checkout can help. Only the compiled
dependencies are shared through CARGO_TARGET_DIR: building them again would prove nothing about the sdist.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "intermediate_server"
NOT_PUBLISHED = ("tests/", "bench/results", ".venv", "target/", "fuzz/", "__pycache__", "state/")


def main(directory: Path) -> None:
    version = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["workspace"]["package"]["version"]
    wheel = only(directory, f"{PACKAGE}-{version}-*.whl")
    sdist = only(directory, f"{PACKAGE}-{version}.tar.gz")
    check_wheel(wheel)
    check_sdist(sdist, f"{PACKAGE}-{version}/")
    check_install(sdist, version)
    print(f"{wheel.name} and {sdist.name} hold what they should; the sdist installs and runs")


def only(directory: Path, pattern: str) -> Path:
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"expected one {pattern} in {directory}, found {[path.name for path in found]}")
    return found[0]


def check_wheel(wheel: Path) -> None:
    if "-cp311-abi3-" not in wheel.name:
        raise SystemExit(f"{wheel.name} is not built for the stable ABI of Python 3.11")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"{PACKAGE}/{name}" for name in ("__init__.py", "py.typed", "_engine.pyi", "_engine.abi3.so")}
    report(wheel, missing=wanted - names, unwanted={name for name in names if name.startswith(("tests/", "crates/"))})
    if not any(name.endswith("/licenses/LICENSE") for name in names):
        raise SystemExit(f"{wheel.name} holds no licence")


def check_sdist(sdist: Path, prefix: str) -> None:
    with tarfile.open(sdist) as archive:
        names = {member.name.removeprefix(prefix) for member in archive.getmembers()}
    wanted = {
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "crates/binding/Cargo.toml",
        "crates/engine/Cargo.toml",
        f"src/{PACKAGE}/__init__.py",
        f"src/{PACKAGE}/_engine.pyi",
    }
    unwanted = {name for name in names if name.startswith(NOT_PUBLISHED) or name.endswith((".so", ".pyc"))}
    report(sdist, missing=wanted - names, unwanted=unwanted)


def report(archive: Path, *, missing: set[str], unwanted: set[str]) -> None:
    if missing or unwanted:
        raise SystemExit(f"{archive.name}: missing {sorted(missing)}, should not hold {sorted(unwanted)}")


def check_install(sdist: Path, version: str) -> None:
    with tempfile.TemporaryDirectory(prefix="sdist-check-") as scratch:
        environment = Path(scratch) / "venv"
        venv.create(environment, with_pip=True)
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYO3_PYTHON")}
        pip = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", str(sdist.resolve())]
        subprocess.run(pip, check=True, cwd=scratch, env=clean)
        program = environment / "bin/intermediate-server"
        result = subprocess.run(
            [program, "--version"], check=True, cwd=scratch, env=clean, capture_output=True, text=True
        )
        if version not in result.stdout:
            raise SystemExit(f"'intermediate-server --version' says {result.stdout!r}, not {version}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "dist"))
