"""Hosts for the commands of a page: each has a network, processes, users and files of its own.

Their files are those of this host, as they are, beneath a layer of their own, so that paths on pages are literal and
nothing that a page does stays. ``u`` is who types after ``$``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import IO

import psutil

from tests.docs.page import ROOT
from tests.e2e.netns import Host, Network

PATIENCE = 90.0
"""Seconds until a command is given up."""
USER, UID = "u", 7000
HOME = "/home/u"
RELAY = "203.0.113.1"
"""The address of the host ``relay``, or of a page's only host; relay.example.com is its name."""
OTHERS = "198.51.100."
GATEWAY = "192.0.2.1"
PROGRAMS = "/opt/intermediate-server"
DESK = "/run/page"
"""Where commands and what they print are, on each host."""
_STAND_IN = f"PYTHONPATH={ROOT} exec {PROGRAMS}/bin/python3 -m tests.docs.stand_ins."
STAND_INS = {
    "make": 'exec /usr/bin/make --dry-run "$@" > /dev/null',
    "docker": f'{_STAND_IN}docker "$@"',
    "systemctl": f'{_STAND_IN}systemctl "$@"',
    "journalctl": f'{_STAND_IN}systemctl journal "$@"',
}
"""Programs that cannot do here what they do elsewhere, as shell scripts."""

_BEGIN = """\
set -e
mount -t tmpfs -o mode=755 page "$AT"
mkdir "$AT/root"
layer() {
    mkdir -p "$AT/$2/upper" "$AT/$2/work"
    mount -t overlay -o "lowerdir=$1,upperdir=$AT/$2/upper,workdir=$AT/$2/work" page "$AT/root$1"
}
layer / 0
n=1; for directory in $APART; do layer "$directory" $n; n=$((n + 1)); done
cd "$AT/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
mount -t tmpfs -o mode=755 run run
mkdir -m 1777 run/lock run/page
mkdir -p media/stick
mount --bind "$STICK" media/stick
mkdir .beneath
pivot_root . .beneath
umount -l /.beneath
rmdir /.beneath
hostname "$NAME"
sh -c "$PREPARE"
echo ready
while :; do sleep 3600 & wait; done
"""

_PREPARE = r"""
set -e
for directory in $OPEN; do
    while [ "$directory" != / ]; do chmod a+x "$directory"; directory=$(dirname "$directory"); done
done
echo "$USERNAME:x:$ID:$ID::$HOME_OF_USER:/bin/bash" >> /etc/passwd
echo "$USERNAME:x:$ID:" >> /etc/group
printf '127.0.0.1 localhost\n::1 localhost\n%s' "$HOSTS" > /etc/hosts
echo "$NAME" > /etc/hostname
rm -f /etc/resolv.conf
echo 'nameserver 127.0.0.1' > /etc/resolv.conf
rm -rf /etc/intermediate-server /var/lib/intermediate-server* /etc/systemd/system/intermediate-server* /home/u
install -d -o "$ID" -g "$ID" "$HOME_OF_USER"
install -d -o "$ID" -g "$ID" -m 700 "/run/user/$ID"
"""

_PROGRAM = """\
#!{programs}/bin/python3
import sys
from intermediate_server.cli import main
sys.exit(main())
"""


class Machine:
    """One host. Use :meth:`end` when done."""

    def __init__(
        self, host: Host, name: str, hosts: str, directory: Path, stick: Path, programs: Path | None = None
    ) -> None:
        """``hosts`` are the lines of its ``/etc/hosts``, ``directory`` an empty one, ``stick`` one for all hosts.

        ``programs`` is an environment in which the package is installed; without it there is one with this tree.
        """
        self.host, self.name = host, name
        apart = [path for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix)) if _mounted(path)]
        environment = {
            "PATH": os.environ["PATH"],
            "AT": str(directory),
            "STICK": str(stick),
            "APART": " ".join(map(str, apart)),
            "OPEN": f"{ROOT} {sys.prefix} {sys.base_prefix} {programs or ''}",
            "NAME": name,
            "HOSTS": hosts,
            "PREPARE": _PREPARE,
            "USERNAME": USER,
            "ID": str(UID),
            "HOME_OF_USER": HOME,
        }
        self._unshare = subprocess.Popen(
            [
                *host.within,
                *("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"),
                *("sh", "-c", _BEGIN),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._unshare.stdout is not None
        said = ""
        while not said.endswith("ready\n"):
            line = self._unshare.stdout.readline()
            assert line, f"the host {name} cannot be made: {said}"
            said += line
        (self._first,) = psutil.Process(self._unshare.pid).children()
        self._terminals: dict[bool, Terminal] = {}
        for tool, script in STAND_INS.items():
            self.write(f"/usr/local/bin/{tool}", f"#!/bin/sh\n{script}\n", 0o755)
        self.path("intermediate-server").symlink_to(ROOT)
        if programs is None:
            self._install()
        else:
            self.path(PROGRAMS).symlink_to(programs)
        if not (ROOT / ".venv").exists():
            self.path(f"{ROOT}/.venv").symlink_to(PROGRAMS)

    def terminal(self, *, root: bool) -> Terminal:
        """The one shell of this user."""
        if root not in self._terminals:
            self._terminals[root] = Terminal(self, root=root)
        return self._terminals[root]

    def path(self, path: str) -> Path:
        """Where this process finds a file of the host; relative paths count from the user's home."""
        return Path(f"/proc/{self._first.pid}/root/{HOME if not path.startswith('/') else ''}/{path}")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file; in the user's home it is the user's."""
        place = self.path(path)
        owner = UID if not path.startswith("/") or path.startswith(f"{HOME}/") else 0
        missing = [parent for parent in place.parents if not parent.exists()]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
        place.chmod(mode)
        for made in (place, *missing):
            os.chown(made, owner, owner)

    def listening(self) -> set[str]:
        """The addresses at which programs listen by TCP, as proc(5) writes them."""
        lines: list[str] = []
        for kind in ("tcp", "tcp6"):
            lines += Path(f"/proc/{self._first.pid}/net/{kind}").read_text(encoding="ascii").splitlines()[1:]
        return {line.split()[1] for line in lines if line.split()[3] == "0A"}

    def within(self, *, root: bool) -> list[str]:
        """What the command line of a program on this host begins with."""
        enter = ["nsenter", "--target", str(self._first.pid), "--net", "--mount", "--uts", "--ipc", "--pid"]
        user, home, uid = ("root", "/root", 0) if root else (USER, HOME, UID)
        clean = [
            *("env", "-i", f"HOME={home}", f"USER={user}", f"LOGNAME={user}", "LANG=C.UTF-8", "TZ=UTC", "TERM=dumb"),
            f"PATH={PROGRAMS}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ]
        if root:
            # What no namespace holds, such as the clock, stays as it is.
            return [*enter, "--", "setpriv", "--bounding-set=-sys_time,-sys_boot,-sys_module", *clean]
        change = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all"]
        return [*enter, "--", *change, *clean, f"XDG_RUNTIME_DIR=/run/user/{uid}"]

    def end(self) -> None:
        """End all that runs here; its files go with it."""
        for terminal in self._terminals.values():
            terminal.end()
        self._unshare.kill()
        self._unshare.wait()
        assert self._unshare.stdout is not None
        self._unshare.stdout.close()

    def _install(self) -> None:
        """The package, with what the tests have installed, in an environment of its own."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        libraries = next(path for path in map(Path, sys.path) if path.name == "site-packages")
        self.write(f"{PROGRAMS}/pyvenv.cfg", f"home = {sys.base_prefix}/bin\n")
        self.write(f"{PROGRAMS}/lib/{version}/site-packages/tests.pth", f"{ROOT}/src\n{libraries}\n")
        self.write(f"{PROGRAMS}/bin/intermediate-server", _PROGRAM.format(programs=PROGRAMS), 0o755)
        self.path(f"{PROGRAMS}/bin/python3").symlink_to(f"{sys.base_prefix}/bin/{version}")
        # As pip leaves it: the program looks up there where it lies.
        about = distribution("intermediate-server")
        for name in ("METADATA", "RECORD", "entry_points.txt"):
            place = f"intermediate_server-{about.version}.dist-info/{name}"
            self.write(f"{PROGRAMS}/lib/{version}/site-packages/{place}", about.read_text(name) or "")


class Terminal:
    """A shell in which commands are typed one after the other."""

    def __init__(self, machine: Machine, *, root: bool) -> None:
        self._machine = machine
        self._prefix = f"{DESK}/{'root' if root else USER}"
        self._shell = subprocess.Popen(
            [*machine.within(root=root), "bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._count = 0
        self._type(f"cd {HOME}; set -o pipefail")

    def type(self, command: str, *, stays: bool = False) -> Typed:
        """Type a command; one that ``stays`` goes on while others are typed."""
        self._count += 1
        file = f"{self._prefix}-{self._count}"
        self._machine.path(file).write_text(f"{command}\n", encoding="utf-8")
        run = f"{{ . {file}; }} >{file}.out 2>&1 </dev/null; echo $? >{file}.part; mv {file}.part {file}.status"
        self._type(f"{{ {run}; }} &" if stays else run)
        return Typed(command, self._machine.path(f"{file}.out"), self._machine.path(f"{file}.status"))

    def goes_on(self) -> bool:
        """Whether the last command with ``&`` runs, or has ended well."""
        asked = self.type("kill -0 $! 2> /dev/null || wait $!")
        until(lambda: asked.status is not None)
        return asked.status == 0

    def end(self) -> None:
        """End the shell."""
        self._shell.kill()
        self._shell.wait()
        assert self._shell.stdin is not None
        self._shell.stdin.close()

    def _type(self, line: str) -> None:
        stdin: IO[str] | None = self._shell.stdin
        assert stdin is not None
        stdin.write(f"{line}\n")
        stdin.flush()


class Typed:
    """A command that was typed."""

    def __init__(self, command: str, output: Path, status: Path) -> None:
        self.command = command
        self._output, self._status = output, status

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self._output.read_text(encoding="utf-8", errors="replace") if self._output.exists() else ""

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return int(self._status.read_text(encoding="ascii")) if self._status.exists() else None


def until(condition: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Wait for a condition; whether it came true."""
    end = time.monotonic() + patience
    while not (true := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return true


def machines(network: Network, names: list[str], directory: Path, programs: Mapping[str, Path]) -> dict[str, Machine]:
    """Hosts with these names, that of a page's only host being empty.

    Those that are called ``relay...`` are reached by all, the others by nobody; they do not see each other.
    """
    internet = network.host()
    internet.forward()
    internet.ip(f"addr add {GATEWAY}/32 dev lo")
    internet.nft(
        "add table ip between; add chain ip between passing { type filter hook forward priority 0; policy drop; };"
        "add rule ip between passing ip daddr 203.0.113.0/24 accept;"
        "add rule ip between passing ct state established accept"
    )
    public = [name for name in names if name.startswith("relay")] or [name for name in names if not name]
    addresses = {name: f"{RELAY[:-1]}{number}" for number, name in enumerate(public, start=1)}
    private = sorted((name for name in names if name not in public), key=lambda name: not name)
    addresses |= {name: f"{OTHERS}{number}" for number, name in enumerate(private, start=6)}
    known = "".join(f"{addresses[name]} {name or 'relay'}.example.com {name}\n" for name in public)
    made: dict[str, Machine] = {}
    stick = directory / "stick"
    stick.mkdir()
    stick.chmod(0o1777)
    for number, (name, address) in enumerate(addresses.items()):
        host = network.host()
        link = network.link(internet, host, [(f"{GATEWAY}/32", f"{address}/32")])
        host.ip(f"route add {GATEWAY} dev {link}")
        host.route("default", GATEWAY)
        internet.ip(f"route add {address} dev {link}")
        at = directory / f"host{number}"
        at.mkdir()
        made[name] = Machine(
            host, name or "host", f"{known}127.0.1.1 {name or 'host'}\n", at, stick, programs.get(name)
        )
    return made


@cache
def missing() -> str | None:
    """Why hosts with files of their own cannot be made here; None when they can."""
    tried = 'mount -t tmpfs page /mnt && cd /mnt && mkdir u w r && mount -t overlay -o "$0" page r'
    words = ("unshare", "--mount", "--pid", "--fork", "sh", "-c", tried, "lowerdir=/,upperdir=u,workdir=w")
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return None if done.returncode == 0 else f"this kernel or container lets nobody mount an overlay: {done.stderr}"


def _mounted(path: Path) -> bool:
    """Whether a directory is on another file system than the root, so that a layer on that one lacks it."""
    return path.stat().st_dev != Path("/").stat().st_dev
