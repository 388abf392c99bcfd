"""Build the image by buildah, and run it as its configuration says: as its user, on a root that is read-only.

With a directory as argument the wheel in it is taken; otherwise the image compiles its own.
No container engine is needed, but root on Debian: what is mounted, and the network of what runs, are in namespaces of
this process alone. Nothing is pulled from a registry: Debian's packages make the base, and the builder has the Rust of
this host. What cannot run here is said, and is no error.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from tools.artefacts import PLACE, ROOT, check, only, version
from tools.check_sbom import check_prefix
from tools.roots import CHROOT, KEPT, lacking, make_base, mount_system, own_mounts, own_network

WORK = KEPT / "memory"
"""For all but the base; it is gone with this process."""
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
"""Whom this host trusts; a proxy in front of the package indexes may be among them."""
NEEDED = {"buildah": "buildah", "mmdebstrap": "mmdebstrap", "ip": "iproute2", "rustc": "rustup", "cargo": "rustup"}
PATIENCE = 60.0
STATE = "/var/lib/intermediate-server"
SECRET = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{16}|ztj1_[A-Za-z0-9_-]{80}")


def main(directory: Path | None) -> None:
    reasons = list(lacking(NEEDED))
    if reasons:
        print(f"skipped: the image is neither built nor run here: {', '.join(reasons)}")
        return
    own_mounts()
    WORK.mkdir(parents=True, exist_ok=True)
    # buildah copies whole layers, which is slow on a disk.
    run("mount", "-t", "tmpfs", "-o", "size=8G", "storage", str(WORK))
    base = make_base(WORK)
    build(base, directory)
    config = configuration()
    root = Path(buildah("mount", buildah("from", "--pull-never", "intermediate-server")))
    check_content(root)
    own_network()
    check_running(root, config)
    print(f"the image of {version()} is built, and relays a request as uid 10001 on a read-only root")


def build(base: Path, directory: Path | None) -> None:
    """The image, multi-stage, from bases that are made here, with the wheel in ``directory`` or one of its own."""
    container = buildah("from", "scratch")
    buildah("add", container, str(base), "/")
    buildah("commit", "--rm", container, "base")
    volumes, arguments = [], ["--build-context", f"wheel={WORK}/finished"]
    if directory is None:
        volumes, arguments = make_builder(), []
    else:
        (WORK / "finished/wheel").mkdir(parents=True)
        shutil.copy(only(directory, f"intermediate_server-{version()}-*.whl"), WORK / "finished/wheel")
    if AUTHORITIES.exists():
        (WORK / "pip.conf").write_text("[global]\ncert = /etc/host-ca.crt\n", encoding="utf-8")
        (WORK / "cargo.toml").write_text('[http]\ncainfo = "/etc/host-ca.crt"\n', encoding="utf-8")
        volumes += [f"{AUTHORITIES}:/etc/host-ca.crt:ro", f"{WORK}/pip.conf:/etc/pip.conf:ro"]
        volumes += [f"{WORK}/cargo.toml:/root/.cargo/config.toml:ro"]
    # Its own format knows no health check.
    arguments += ["--isolation", "chroot", "--format", "docker", "--pull-never"]
    arguments += [word for volume in volumes for word in ("--volume", volume)]
    for name, value in {"BASE": "base", "BUILDER": "builder", "VERSION": version()}.items():
        arguments += ["--build-arg", f"{name}={value}"]
    buildah("build", *arguments, "--file", "deploy/Dockerfile", "--tag", "intermediate-server", ".", shown=True)


def make_builder() -> list[str]:
    """The base of the stage that compiles; returns what is to be mounted: the Rust of this host."""
    container = buildah("from", "--pull-never", "base")
    root = Path(buildah("mount", container))
    for program in ("cargo", "rustc"):
        (root / "usr/local/bin" / program).symlink_to(f"/opt/rust/bin/{program}")
    buildah("commit", "--rm", container, "builder")
    return [f"{run('rustc', '--print', 'sysroot')}:/opt/rust:ro"]


def configuration() -> dict[str, Any]:
    """What the image says of itself, checked."""
    config: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", "intermediate-server"))["Docker"][
        "config"
    ]
    check(config["User"] == "10001:10001", f"the user is {config['User']}")
    check(config["Healthcheck"]["Test"][0] == "CMD", "the health check needs a shell")
    check(list(config["Volumes"]) == [STATE], f"the volumes are {list(config['Volumes'])}")
    check(config["ExposedPorts"] == {"4433/udp": {}}, f"the ports are {config['ExposedPorts']}")
    found = config["Labels"]["org.opencontainers.image.version"]
    check(found == version(), f"the version is {found}")
    check(config["Labels"]["intermediate-server.sboms"] == f"/{PLACE}/sboms", "the bills of materials are elsewhere")
    return config


def check_content(root: Path) -> None:
    """No secret, nothing to build with, complete bills of materials, and an empty state directory of the user."""
    state = root / STATE.lstrip("/")
    found = state.stat()
    check(not list(state.iterdir()), f"{STATE} is not empty")
    check((found.st_uid, found.st_gid, found.st_mode & 0o777) == (10001, 10001, 0o700), f"{STATE} is another's")
    print(f"{check_prefix(root / PLACE)} in the bills of materials of the image")
    for name in ("wheel", "build", "tools", "sbom", "usr/bin/gcc", "usr/bin/curl", f"{PLACE}/bin/pip"):
        check(not (root / name).exists(), f"/{name} is in the image")
    for path in (path for place in ("opt", "etc", "root", "var/lib") for path in (root / place).rglob("*")):
        if path.is_file() and not path.is_symlink():
            check(not SECRET.search(path.read_bytes()), f"{path} holds a secret")


def check_running(root: Path, config: dict[str, Any]) -> None:
    """Run relay, connector and agent from the image, each with a state of its own, and fetch a page through them."""
    server, connector, agent = (Container(root, config, name) for name in ("server", "connector", "agent"))
    check(server.output("--version") == f"intermediate-server {version()}", "--version says something else")
    check(server.output(whole=["sh", "-c", "touch /x || id -u"]) == "10001", "the root can be written, or is another's")
    with server.running(*config["Cmd"]):
        server.wait_healthy("server")
        with server.running(whole=["python3", "-m", "http.server", "8080", "--bind", "127.0.0.1"]):
            for each, role in ((connector, "connector"), (agent, "agent")):
                said = server.output("token", "create", "web", "--role", role, "--address", "127.0.0.1")
                each.put("token", said.partition(" join ")[2].split()[0])
            serving = ("connector", "--join", f"{STATE}/token", "--service", "web=tcp://127.0.0.1:8080")
            reaching = ("agent", "--join", f"{STATE}/token", "--forward", "tcp:127.0.0.1:8081=web")
            with connector.running(*serving):
                connector.wait_healthy("connector")
                with agent.running(*reaching):
                    agent.wait_healthy("agent")
                    check(b"Directory listing" in fetch_page(), "another page")


def fetch_page() -> bytes:
    """A page, as soon as the agent knows that the service is there."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with urlopen("http://127.0.0.1:8081/", timeout=PATIENCE) as answer:
                return bytes(answer.read())
        except OSError as error:
            check(time.monotonic() < end, f"no page: {error}")
            time.sleep(0.2)


class Container:
    """A root of the image that is read-only, but for the state directory."""

    def __init__(self, image: Path, config: dict[str, Any], name: str) -> None:
        self.config = config
        self.root = WORK / "roots" / name
        self.root.mkdir(parents=True)
        run("mount", "--bind", str(image), str(self.root))
        run("mount", "-o", "remount,bind,ro,nosuid", str(self.root))
        run("mount", "-t", "tmpfs", "-o", "mode=0755", "dev", str(self.root / "dev"))
        mount_system(self.root)
        self.state = self.root / STATE.lstrip("/")
        run("mount", "-t", "tmpfs", "-o", "mode=0700,uid=10001,gid=10001", "state", str(self.state))

    def command(self, *arguments: str, whole: list[str] | None = None) -> list[str]:
        user, _, group = self.config["User"].partition(":")
        least = ["setpriv", "--reuid", user, "--regid", group, "--clear-groups", "--no-new-privs"]
        least += ["--bounding-set=-all", "--inh-caps=-all"]
        within = [CHROOT, str(self.root), "env", f"--chdir={self.config['WorkingDir']}", *least]
        return within + (whole or [*self.config["Entrypoint"], *arguments])

    @property
    def environment(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.config["Env"])

    def output(self, *arguments: str, whole: list[str] | None = None) -> str:
        """What a command prints."""
        done = self.run(*arguments, whole=whole)
        check(done.returncode == 0, f"{whole or arguments}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def run(self, *arguments: str, whole: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        command = self.command(*arguments, whole=whole)
        return subprocess.run(
            command, env=self.environment, check=False, capture_output=True, text=True, timeout=PATIENCE
        )

    @contextmanager
    def running(self, *arguments: str, whole: list[str] | None = None) -> Iterator[None]:
        """The program, which ends well by SIGTERM; another one need not."""
        with subprocess.Popen(self.command(*arguments, whole=whole), env=self.environment) as process:
            try:
                yield
                process.terminate()
                code = process.wait(PATIENCE)
                check(code == 0 or whole is not None, f"{arguments} ends with {code}")
            finally:
                process.kill()

    def wait_healthy(self, program: str) -> None:
        """Ask the health check of the image until it is well."""
        end, check_it = time.monotonic() + PATIENCE, self.config["Healthcheck"]["Test"][1:]
        # They share a network here, so a client finds the server too.
        while (done := self.run(whole=check_it)).returncode != 0 or f"{program}: ok\n" not in done.stdout:
            check(time.monotonic() < end, f"{program} is not healthy: {done.stdout}{done.stderr}")
            time.sleep(0.2)

    def put(self, name: str, text: str) -> None:
        """A file that the user alone may read."""
        path = self.state / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o400)
        os.chown(path, 10001, 10001)


def buildah(command: str, *arguments: str, shown: bool = False) -> str:
    where = ["--root", str(WORK / "storage"), "--runroot", str(WORK / "run"), "--storage-driver", "vfs"]
    return run("buildah", *where, command, *arguments, shown=shown)


def run(*command: str, shown: bool = False) -> str:
    """What a command prints; ``shown`` lets it print for whoever waits."""
    done = subprocess.run(command, check=False, cwd=ROOT, stdout=None if shown else subprocess.PIPE, text=True)
    check(done.returncode == 0, f"{' '.join(command)} ends with {done.returncode}")
    return (done.stdout or "").strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
