"""Roots of Debian, in namespaces of this process alone, for image and packages to run in."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.request import urlopen

from tools.artefacts import ROOT, check

KEPT = ROOT / "target/image"
"""For the base."""
SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
CHROOT = shutil.which("chroot") or "/usr/sbin/chroot"
"""By its path, since what runs has the PATH of the root."""
_NEW_MOUNTS, _NEW_NETWORK = 0x00020000, 0x40000000
"""Flags of unshare(2)."""
_PATIENCE = 60.0


def lacking(needed: Mapping[str, str]) -> Iterator[str]:
    """Why there can be none here; ``needed`` has a package for each program."""
    if os.geteuid() != 0:
        yield "this is not root"
    for program, package in needed.items():
        if shutil.which(program) is None:
            yield f"{package} is not installed"
    if subprocess.run(["unshare", "--mount", "--net", "true"], check=False, capture_output=True).returncode != 0:
        yield "there are no namespaces"
    try:
        urlopen(f"{MIRROR}/dists/{SUITE}/Release", timeout=_PATIENCE).close()  # noqa: S310  no other scheme
    except OSError as error:
        yield f"{MIRROR} is not reached: {error}"


def make_base(memory: Path) -> Path:
    """The smallest root of Debian, as a tar archive; made once, in a directory that is no disk."""
    base = KEPT / f"{SUITE}.tar"
    if not base.exists():
        part = base.with_suffix(".part.tar")
        KEPT.mkdir(parents=True, exist_ok=True)
        made = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", SUITE, str(part), MIRROR]
        _run("env", f"TMPDIR={memory}", *made)
        part.rename(base)
    return base


def own_mounts() -> None:
    """What is mounted from now on is gone with this process."""
    _unshare(_NEW_MOUNTS)
    _run("mount", "--make-rprivate", "/")


def own_network() -> None:
    """A network of this process, with nothing but loopback."""
    _unshare(_NEW_NETWORK)
    _run("ip", "link", "set", "lo", "up")


def mount_system(root: Path) -> None:
    """Give a root ``/proc`` and the devices that every program expects."""
    _run("mount", "-t", "proc", "proc", str(root / "proc"))
    for device in ("null", "urandom"):
        (root / "dev" / device).touch()
        _run("mount", "--bind", f"/dev/{device}", str(root / "dev" / device))


def _unshare(flags: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    check(library.unshare(flags) == 0, f"no namespaces here: {os.strerror(ctypes.get_errno())}")


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False)
    check(done.returncode == 0, f"{' '.join(command)} ends with {done.returncode}")
