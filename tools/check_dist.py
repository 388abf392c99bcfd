"""Check what is about to be published: what wheel and sdist hold, how little the wheel needs, and that both run.

The environments are empty and outside the checkout, so that nothing of the checkout can help. Only the compiled
dependencies are shared through CARGO_TARGET_DIR: building them again would prove nothing about the sdist.
"""

import os
import re
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path
from typing import IO

from tools import artefacts
from tools.artefacts import only
from tools.check_sbom import check_crates

PACKAGE = "intermediate_server"
MOST_BYTES = 30 << 20
"""Of the wheel and all that it needs for agents and connectors, installed."""
MOST_SECONDS = 0.5
"""Of a processor, for ``agent --help``."""
OLDEST_GLIBC = (2, 17)
"""The glibc of Rust's own standard library; a wheel built without zig says the one of this machine."""
NOT_PUBLISHED = ("tests/", "bench/results", ".venv", "target/", "fuzz/", "__pycache__", "state/")


def main(directory: Path) -> None:
    version = artefacts.version()
    wheel = only(directory, f"{PACKAGE}-{version}-*.whl")
    sdist = only(directory, f"{PACKAGE}-{version}.tar.gz")
    check_wheel(wheel)
    check_platform(wheel)
    check_sdist(sdist, f"{PACKAGE}-{version}/")
    with tempfile.TemporaryDirectory(prefix="dist-check-") as scratch:
        check_base(Environment(Path(scratch) / "base"), wheel, version)
        bare = Environment(Path(scratch) / "bare")
        bare.refuses(sdist, "not found here; install that, or take the wheel", PATH=str(bare.home / "bin"))
        old = ("--platform", "manylinux_2_12_x86_64", "--only-binary", ":all:", "--no-deps", "--target", "old")
        bare.refuses(wheel, "is not a supported wheel on this platform", *old)
        # Its dependencies have been compiled for the tests, in their profile.
        Environment(Path(scratch) / "sdist").install(sdist, MATURIN_PEP517_ARGS="--profile dev").check_version(version)
    print(f"{wheel.name} and {sdist.name} hold what they should, install and run")


def check_wheel(wheel: Path) -> None:
    if "-cp311-abi3-" not in wheel.name:
        raise SystemExit(f"{wheel.name} is not built for the stable ABI of Python 3.11")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"{PACKAGE}/{name}" for name in ("__init__.py", "py.typed", "_engine.pyi", "_engine.abi3.so")}
    report(wheel, missing=wanted - names, unwanted={name for name in names if name.startswith(("tests/", "crates/"))})
    if not any(name.endswith("/licenses/LICENSE") for name in names):
        raise SystemExit(f"{wheel.name} holds no licence")
    bills = [name for name in names if "/sboms/" in name]
    if len(bills) != 1:
        raise SystemExit(f"{wheel.name} holds {len(bills)} bills of materials, not one")
    print(f"{wheel.name} names {check_crates(zipfile.ZipFile(wheel).read(bills[0]).decode())} crates")


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
        "tools/build_backend.py",
        f"src/{PACKAGE}/__init__.py",
        f"src/{PACKAGE}/_engine.pyi",
    }
    unwanted = {name for name in names if name.startswith(NOT_PUBLISHED) or name.endswith((".so", ".pyc"))}
    report(sdist, missing=wanted - names, unwanted=unwanted)


def report(archive: Path, *, missing: set[str], unwanted: set[str]) -> None:
    if missing or unwanted:
        raise SystemExit(f"{archive.name}: missing {sorted(missing)}, should not hold {sorted(unwanted)}")


class Environment:
    """An empty virtual environment."""

    def __init__(self, home: Path) -> None:
        venv.create(home, with_pip=True)
        self.home = home
        self.clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYO3_PYTHON")}

    def install(self, file: Path, extra: str = "", **variables: str) -> "Environment":
        """Install a wheel or an sdist."""
        pip = [str(self.home / "bin/python"), "-m", "pip", "install", "--quiet", f"{file.resolve()}{extra}"]
        subprocess.run(pip, check=True, cwd=self.home, env={**self.clean, **variables})
        return self

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the program."""
        command = [str(self.home / "bin/intermediate-server"), *arguments]
        return subprocess.run(command, check=False, cwd=self.home, env=self.clean, capture_output=True, text=True)

    def refuses(self, file: Path, said: str, *options: str, **variables: str) -> None:
        """Check that pip cannot install a file here, and says why in one line."""
        pip = [str(self.home / "bin/python"), "-m", "pip", "install", *options, str(file.resolve())]
        environment = {**self.clean, **variables}
        result = subprocess.run(pip, check=False, cwd=self.home, env=environment, capture_output=True, text=True)
        text = result.stdout + result.stderr
        if result.returncode == 0 or not any(said in line for line in text.splitlines()) or "Traceback" in text:
            raise SystemExit(f"pip install {file.name} says {text}, not {said!r}")

    def check_version(self, version: str) -> None:
        result = self.run("--version")
        if version not in result.stdout:
            raise SystemExit(f"'intermediate-server --version' says {result.stdout + result.stderr!r}, not {version}")

    def packages(self) -> int:
        """How many are installed."""
        return len(list(self.home.glob("lib/python*/site-packages/*.dist-info")))

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.lstat().st_size for path in self.home.rglob("*") if not path.is_dir())


def check_platform(wheel: Path) -> None:
    """Check the tag against the symbols that the module needs, and that it keeps to the stable ABI."""
    shown = output(sys.executable, "-m", "auditwheel", "show", str(wheel))
    tag = re.search(r'consistent with\s+the following platform tag:\s+"([^"]+)"', shown)
    if tag is None or tag[1] not in wheel.name:
        raise SystemExit(f"{wheel.name} has another tag than auditwheel finds:\n{shown}")
    glibc = re.search(r"manylinux_([0-9]+)_([0-9]+)_", wheel.name)
    if glibc is None or (int(glibc[1]), int(glibc[2])) > OLDEST_GLIBC:
        print(f"{wheel.name} needs a newer glibc than {OLDEST_GLIBC[0]}.{OLDEST_GLIBC[1]}: it was built without zig")
    output(str(Path(sys.executable).with_name("abi3audit")), "--strict", str(wheel))


def check_base(environment: Environment, wheel: Path, version: str) -> None:
    """Check what ``pip install intermediate-server`` brings, and that the extra brings the rest."""
    empty, before = environment.size(), environment.packages()
    # Neither a compiler nor anything else of the host is needed.
    environment.install(wheel, PATH=str(environment.home / "bin")).check_version(version)
    size, packages = environment.size() - empty, environment.packages() - before
    if size > MOST_BYTES:
        raise SystemExit(f"the wheel and what it needs take {size / (1 << 20):.1f} MiB")
    idle = resource.getrusage(resource.RUSAGE_CHILDREN)
    if environment.run("agent", "--help").returncode != 0:
        raise SystemExit("'agent --help' fails without extras")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - idle.ru_utime - idle.ru_stime
    if seconds > MOST_SECONDS:
        raise SystemExit(f"'agent --help' takes {seconds:.2f} s")
    refused = environment.run("serve")
    if refused.returncode != 2 or f"pip install '{wheel.resolve()}[server]'" not in refused.stderr:
        raise SystemExit(f"'serve' without its extra says {refused.stderr!r}")
    environment.install(wheel, "[server]")
    checked = environment.run("check-config", "--client-auth", "off")
    if checked.returncode != 0:
        raise SystemExit(f"'check-config' with the extra says {checked.stderr!r}")
    check_upgrade(environment, wheel)
    print(f"base: {packages} packages, {size / (1 << 20):.1f} MiB; agent --help: {seconds:.2f} s")


def check_upgrade(environment: Environment, wheel: Path) -> None:
    """Check that a relay goes on while its files are replaced, reloads after that, and ends well."""
    arguments = ["serve", "--port", "0", "--bind", "127.0.0.1", "--metrics-port", "0", "--state-dir", "state"]
    with subprocess.Popen(
        [str(environment.home / "bin/intermediate-server"), *arguments],
        cwd=environment.home,
        env=environment.clean,
        stderr=subprocess.PIPE,
        text=True,
    ) as relay:
        assert relay.stderr is not None
        try:
            said = wait_line(relay.stderr, "Server listening on")
            environment.install(wheel, "[server]", PIP_FORCE_REINSTALL="1", PIP_NO_DEPS="1")
            relay.send_signal(signal.SIGHUP)
            said += wait_line(relay.stderr, "Reloaded")
            relay.send_signal(signal.SIGTERM)
            said += relay.stderr.read()
            if relay.wait() != 0 or "Traceback" in said:
                raise SystemExit(f"a relay whose files were replaced says:\n{said}")
        finally:
            relay.kill()


def wait_line(stream: IO[str], text: str) -> str:
    """Read until a line with this text; returns all that was read."""
    said = ""
    for line in stream:
        said += line
        if text in line:
            return said
    raise SystemExit(f"{text!r} was not logged:\n{said}")


def output(*command: str) -> str:
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command)}:\n{result.stdout}{result.stderr}")
    return result.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "dist"))
