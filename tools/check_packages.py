"""Make deb and rpm, and look at them; as root on Debian also install, upgrade, downgrade, run, remove and purge them.

That happens in a root of Debian's smallest, which is gone afterwards. What cannot run here is said, and is no error.
"""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.artefacts import PLACE, ROOT, check, version
from tools.check_dist import wait_line
from tools.check_sbom import check_prefix
from tools.packages import (
    CHANGES,
    COMPLETIONS,
    LAYOUT,
    MANUAL,
    PROGRAM,
    PYTHON,
    SETTINGS,
    UNITS,
    WORK,
    make_all,
    make_older,
    run,
)
from tools.roots import CHROOT, lacking, make_base, mount_system, own_mounts, own_network

USERS = [PROGRAM, f"{PROGRAM}-agent", f"{PROGRAM}-connector"]
STATE = f"var/lib/{PROGRAM}"
FILES = [
    f"{PLACE}/bin/python3",
    f"{PLACE}/sboms/python.cdx.json",
    f"{PLACE}/sboms/rust.cdx.json",
    f"usr/bin/{PROGRAM}",
    *(f"usr/lib/systemd/system/{unit}" for unit in UNITS),
    f"usr/lib/sysusers.d/{PROGRAM}.conf",
    COMPLETIONS["bash"],
    COMPLETIONS["fish"],
    CHANGES,
    MANUAL,
]
"""In both packages, beside the settings."""
ZSH = {"deb": "vendor-completions", "rpm": "site-functions"}
KEEP = ("-o", "Dpkg::Options::=--force-confold")
"""Nobody is there whom dpkg could ask about a file that the administrator and the package have changed."""
PORT = 5544
CALLS = "systemctl.log"
"""In the root, of a stand-in, since no systemd runs there."""


def main() -> None:
    if not PYTHON.exists():
        print(f"skipped: no packages are made here: {PYTHON} is not installed")
        return
    made = make_all()
    print(f"target/packages: {check_prefix(LAYOUT / PLACE)} in bills of materials")
    check_deb(made["deb"])
    check_rpm(made["rpm"])
    check_installed(made["deb"], made["rpm"])


def check_deb(deb: Path) -> None:
    """What it says of itself and holds."""
    told = run("dpkg-deb", "--info", str(deb))
    for line in (f"Package: {PROGRAM}", f"Version: {version()}", "Depends: python3.11, procps", "Architecture: amd64"):
        check(f" {line}\n" in told, f"{deb.name} does not say {line!r}:\n{told}")
    kept = run("dpkg-deb", "--info", str(deb), "conffiles").split()
    check(sorted(kept) == sorted(f"/{name}" for name in SETTINGS), f"{deb.name} keeps changes of {kept}")
    check_files(deb, run("dpkg-deb", "--contents", str(deb)))


def check_rpm(rpm: Path) -> None:
    """The same; rpm is not on every Debian."""
    if shutil.which("rpm") is None:
        print(f"skipped: {rpm.name} is not looked at: rpm is not installed")
        return
    query = ("rpm", "--query", "--package", str(rpm))
    told = run(*query, "--queryformat", "%{NAME} %{VERSION} %{ARCH} %{LICENSE}")
    check(told == f"{PROGRAM} {version()} x86_64 Apache-2.0", f"{rpm.name} says {told}")
    check("python3.11\n" in run(*query, "--requires"), f"{rpm.name} needs no Python")
    kept = run(*query, "--configfiles").split()
    check(sorted(kept) == sorted(f"/{name}" for name in SETTINGS), f"{rpm.name} keeps changes of {kept}")
    check_files(rpm, run(*query, "--list", "--verbose"))


def check_files(package: Path, listed: str) -> None:
    """The program and what belongs to it, and nothing of this host."""
    zsh = f"usr/share/zsh/{ZSH[package.suffix[1:]]}/_{PROGRAM}"
    for name in (*FILES, *SETTINGS, zsh):
        check(f"/{name}\n" in listed or f"/{name} ->" in listed, f"{package.name} has no /{name}:\n{listed}")
    check(str(WORK) not in listed, f"{package.name} names a directory of this host")
    print(f"{package.name}: {package.stat().st_size / (1 << 20):.1f} MiB, {len(listed.splitlines())} files")


def check_installed(deb: Path, rpm: Path) -> None:
    """What an administrator does with them, in a root of its own."""
    reasons = list(lacking({"mmdebstrap": "mmdebstrap", "ip": "iproute2"}))
    if reasons:
        print(f"skipped: no package is installed: {', '.join(reasons)}")
        return
    older = make_older("deb")
    root = Root(WORK / "root")
    root.install(older)
    own_network()
    check_upgrade(root, deb, older)
    check_removed(root)
    print(f"{deb.name} is installed, upgraded and downgraded beside a relay, relays a request, is removed and purged")
    check_rpm_installed(root, rpm)


class Root:
    """A root of Debian with Python's packages; it is gone with the mounts of this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        own_mounts()
        run("mount", "-t", "tmpfs", "-o", "size=2G,mode=0755", "root", str(path))
        run("tar", "--extract", "--file", str(make_base(path)), "--directory", str(path), "--exclude=./dev/*")
        mount_system(path)
        for name in ("resolv.conf", "hosts"):
            shutil.copyfile(f"/etc/{name}", path / "etc" / name)
        self.run("apt-get", "update", "--quiet")
        # systemd itself has it on a real host.
        self.apt("install", "systemd-standalone-sysusers")
        (path / "run/systemd/system").mkdir(parents=True)
        systemctl = path / "usr/bin/systemctl"
        systemctl.write_text(f'#!/bin/sh\necho "$*" >> /{CALLS}\n', encoding="utf-8")
        systemctl.chmod(0o755)

    def command(self, *command: str) -> list[str]:
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"]
        return [CHROOT, str(self.path), *clean, *command]

    def run(self, *command: str) -> str:
        """What a command prints."""
        return run(*self.command(*command))

    def apt(self, *arguments: str) -> None:
        self.run("apt-get", "--yes", "--quiet", "--no-install-recommends", "--allow-downgrades", *KEEP, *arguments)

    def install(self, deb: Path) -> None:
        shutil.copyfile(deb, self.path / "package.deb")
        self.apt("install", "/package.deb")

    def as_user(self, *command: str) -> list[str]:
        """A command as the unit of the relay runs it."""
        drop = ["setpriv", f"--reuid={PROGRAM}", f"--regid={PROGRAM}", "--clear-groups", "--no-new-privs"]
        return self.command(f"STATE_DIRECTORY=/{STATE}", *drop, *command)

    @contextmanager
    def relay(self) -> Iterator[subprocess.Popen[str]]:
        """The relay as its unit starts it; it ends well by SIGTERM."""
        unit = (self.path / f"usr/lib/systemd/system/{PROGRAM}.service").read_text(encoding="utf-8")
        start = next(line.removeprefix("ExecStart=") for line in unit.splitlines() if line.startswith("ExecStart="))
        with subprocess.Popen(self.as_user(*start.split()), stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            try:
                said = wait_line(process.stderr, "Server listening on")
                check(str(PORT) in said, f"the relay does not read its settings:\n{said}")
                yield process
                process.send_signal(signal.SIGTERM)
                said += process.stderr.read()
                check(process.wait() == 0, f"the relay ends with {process.returncode}:\n{said}")
            finally:
                process.kill()

    def calls(self) -> list[str]:
        """What systemctl has been asked to do since the last question."""
        log = self.path / CALLS
        lines = log.read_text(encoding="utf-8").splitlines()
        log.unlink()
        return lines

    def has(self, name: str) -> bool:
        return (self.path / name).exists() or (self.path / name).is_symlink()


def check_upgrade(root: Root, deb: Path, older: Path) -> None:
    """Settings and state outlive an upgrade and a downgrade, and a relay does not notice them."""
    settings = root.path / SETTINGS[0]
    check_settings(root)
    text = f"port = {PORT}\n" + settings.read_text(encoding="utf-8")
    settings.write_text(text, encoding="utf-8")
    root.run("install", "--directory", "--mode=0700", f"--owner={PROGRAM}", f"--group={PROGRAM}", f"/{STATE}")
    healthy = root.as_user(PROGRAM, "healthcheck", "server")
    with root.relay() as relay:
        authority = run(*root.command("sha256sum", f"/{STATE}/ca.pem"))
        root.install(deb)
        check(relay.poll() is None, "an upgrade ends a relay that runs")
        check(run(*healthy) == "server: ok\n", "a relay is not well after an upgrade")
    for package in (None, older, deb):
        if package is not None:
            root.install(package)
        with root.relay():
            check(run(*healthy) == "server: ok\n", "another version does not run")
    check(run(*root.command("sha256sum", f"/{STATE}/ca.pem")) == authority, "the CA is another one")
    check(settings.read_text(encoding="utf-8") == text, "settings are lost")
    check_sample(root)
    check_settings(root)
    check(set(root.calls()) == {"daemon-reload"}, "an upgrade asks systemd for more than to read the units")
    check_program(root)
    printed = root.run(PROGRAM, "unit", "server")
    check(f"ExecStart=/{PLACE}/bin/{PROGRAM} serve\n" in printed, f"its unit is of another place:\n{printed}")


def check_settings(root: Root) -> None:
    """Check that each file of settings is for its service alone."""
    for name, user in zip(SETTINGS, USERS, strict=True):
        owner = root.run("stat", "--format=%U:%G %a", f"/{name}").strip()
        check(owner == f"root:{user} 640", f"{name} is of {owner}")


def check_sample(root: Root) -> None:
    """Check that a file that nobody has changed is the one of the version."""
    wanted = (ROOT / "deploy/agent.toml").read_text(encoding="utf-8")
    check((root.path / SETTINGS[1]).read_text(encoding="utf-8") == wanted, "an upgrade leaves an old sample")


def check_program(root: Root) -> None:
    """It is the version, relays a request, and has its completions."""
    check(root.run(PROGRAM, "--version") == f"{PROGRAM} {version()}\n", "another version runs")
    root.run(PROGRAM, "lab", "--once")
    script = f"source /{COMPLETIONS['bash']}; complete -p {PROGRAM}"
    check(root.run("bash", "-c", script).strip().endswith(f" {PROGRAM}"), "bash has no completions")


def check_removed(root: Root) -> None:
    """A removal keeps the settings, a purge does not, and both keep the state, which holds keys."""
    root.apt("remove", PROGRAM)
    left = [name for name in (PLACE, *FILES) if root.has(name)]
    check(not left, f"a removal leaves {left}")
    check(all(map(root.has, SETTINGS)), "a removal takes settings away")
    check_ended(root)
    root.apt("purge", PROGRAM)
    check(not root.has(f"etc/{PROGRAM}"), "a purge leaves settings")
    check(root.has(f"{STATE}/ca.pem"), "a purge takes the CA away")


def check_ended(root: Root) -> None:
    """Check that a removal has ended all of its services."""
    ended, *after = root.calls()
    check(ended.startswith("disable --now ") and all(unit in ended.split() for unit in UNITS), f"asked for {ended!r}")
    check(set(after) == {"daemon-reload"}, f"asked for {after}")


def check_rpm_installed(root: Root, rpm: Path) -> None:
    """By rpm itself, with the Python of Debian, which is not in its database."""
    if shutil.which("rpm") is None:
        print(f"skipped: {rpm.name} is not installed: rpm is not")
        return
    database = ("rpm", "--root", str(root.path), "--force-debian")
    run(*database, "--install", "--nodeps", str(make_older("rpm")))
    check_settings(root)
    settings = root.path / SETTINGS[0]
    settings.write_text(text := f"port = {PORT}\n", encoding="utf-8")
    run(*database, "--upgrade", "--nodeps", str(rpm))
    check(settings.read_text(encoding="utf-8") == text, "an upgrade of the rpm loses settings")
    check_sample(root)
    check_settings(root)
    check(set(root.calls()) == {"daemon-reload"}, "an upgrade asks systemd for more than to read the units")
    check_program(root)
    run(*database, "--erase", PROGRAM)
    check_ended(root)
    left = [name for name in (PLACE, *FILES) if root.has(name)]
    check(not left, f"rpm leaves {left}")
    check(root.has(f"{SETTINGS[0]}.rpmsave"), "a removal of the rpm takes changed settings away")
    print(f"{rpm.name} is installed, upgraded, relays a request and is removed in the same root")


if __name__ == "__main__":
    main()
