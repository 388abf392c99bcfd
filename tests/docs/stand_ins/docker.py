"""``docker compose`` where no container engine is: the services of ``compose.yaml`` as processes.

Each has the image's user, its volume, secrets and read-only root, and knows the names of the services that share a
network with it. All have the network of this host, so a port is published by being open.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

RUN = Path("/run/docker")
STATE = "/var/lib/intermediate-server"
USER = 10001
PATIENCE = 60.0
# What deploy/Dockerfile sets.
ENVIRONMENT = {
    "PATH": "/opt/intermediate-server/bin:/usr/local/bin:/usr/bin:/bin",
    "STATE_DIRECTORY": STATE,
    "RUNTIME_DIRECTORY": STATE,
}
_ENTER = """\
set -e
mount --bind "$VOLUME" "$STATE"
mount --bind "$HOSTS" /etc/hosts
mkdir -p /run/secrets
mount -t tmpfs secrets /run/secrets
for secret in $SECRETS; do
    touch "/run/secrets/${secret%%=*}"
    mount --bind "${secret#*=}" "/run/secrets/${secret%%=*}"
done
if [ -n "$READ_ONLY" ]; then mount -o remount,bind,ro /; fi
unset VOLUME HOSTS SECRETS READ_ONLY
exec "$@"
"""


class Compose:
    """The services of one file."""

    def __init__(self, file: Path) -> None:
        self._directory = file.parent.resolve()
        self._file: dict[str, Any] = YAML(typ="safe").load(file.read_text(encoding="utf-8"))
        self.services: dict[str, dict[str, Any]] = self._file["services"]

    def up(self, service: str, *, anew: bool) -> None:
        """Start a service, after those that it waits for."""
        for other, what in self.services[service].get("depends_on", {}).items():
            self.up(other, anew=False)
            if what["condition"] == "service_healthy":
                self._wait(other)
        if self.pid(service) is not None:
            if not anew:
                return
            self.stop(service)
        given = self.services[service]
        volume = Path("/var/lib/docker/volumes", f"{self._file['name']}_{service}")
        if not volume.exists():
            volume.mkdir(parents=True, mode=0o700)
            os.chown(volume, USER, USER)
        Path(STATE).mkdir(exist_ok=True)
        RUN.mkdir(exist_ok=True)
        hosts = RUN / f"{service}.hosts"
        hosts.write_text("".join(f"127.0.0.1 {name}\n" for name in ("localhost", *self._known(service))))
        files = {name: self._directory / what["file"] for name, what in self._file.get("secrets", {}).items()}
        own = {
            "VOLUME": str(volume),
            "STATE": STATE,
            "HOSTS": str(hosts),
            "SECRETS": " ".join(f"{name}={files[name]}" for name in given.get("secrets", ())),
            "READ_ONLY": "yes" if given.get("read_only") else "",
        }
        words = [*given.get("entrypoint", ["intermediate-server"]), *given.get("command", ["serve"])]
        with (RUN / f"{service}.log").open("ab") as log:
            process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", _ENTER, "sh", *self._as_user(), *words],
                env={**self.environment(service), **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (RUN / f"{service}.pid").write_text(str(process.pid))
        print(f" Container {self._file['name']}-{service}-1  Started", file=sys.stderr)

    def pid(self, service: str) -> int | None:
        """The process of a service; None when it does not run."""
        try:
            pid = int((RUN / f"{service}.pid").read_text())
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return None
        return None if state == "Z" else pid

    def stop(self, service: str) -> None:
        """End a service."""
        pid = self.pid(service)
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            end = time.monotonic() + PATIENCE
            while self.pid(service) is not None and time.monotonic() < end:
                time.sleep(0.02)

    def run(self, service: str, words: list[str]) -> int:
        """Run a command beside the program of a service; its status."""
        pid = self.pid(service)
        if pid is None:
            print(f'service "{service}" is not running', file=sys.stderr)
            return 1
        enter = ["nsenter", "--target", str(pid), "--mount", "--wd=/", "--", *self._as_user()]
        return subprocess.run([*enter, *words], env=self.environment(service), check=False).returncode

    def environment(self, service: str) -> dict[str, str]:
        """What the image and the file set."""
        given: dict[str, str] = self.services[service].get("environment", {})
        variable = re.compile(r"\$\{(\w+):-([^}]*)\}")
        filled = {
            name: variable.sub(lambda found: os.environ.get(found[1]) or found[2], text) for name, text in given.items()
        }
        return {**ENVIRONMENT, **filled}

    def _known(self, service: str) -> list[str]:
        networks = set(self.services[service].get("networks", ()))
        return [name for name, given in self.services.items() if networks & set(given.get("networks", ()))]

    def _wait(self, service: str) -> None:
        end = time.monotonic() + PATIENCE
        while self.run(service, ["sh", "-c", "intermediate-server healthcheck > /dev/null 2>&1"]):
            if time.monotonic() > end:
                raise SystemExit(f"dependency failed to start: container {service} is unhealthy")
            time.sleep(0.1)

    def _as_user(self) -> list[str]:
        user = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        return ["setpriv", *user, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="docker", description="a stand-in")
    compose = parser.add_subparsers(required=True).add_parser("compose")
    compose.add_argument("--file", "-f", type=Path, default=Path("compose.yaml"))
    verbs = compose.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up")
    up.add_argument("--detach", "-d", action="store_true", required=True)
    up.add_argument("--build", action="store_true")
    for name in ("stop", "restart", "down", "logs"):
        verbs.add_parser(name).add_argument("services", nargs="*")
    up.add_argument("services", nargs="*")
    run = verbs.add_parser("exec")
    run.add_argument("-T", action="store_true", required=True)
    run.add_argument("service")
    run.add_argument("words", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    file = Compose(asked.file)
    if asked.verb == "exec":
        return file.run(asked.service, asked.words)
    for service in asked.services or file.services:
        match asked.verb:
            case "up":
                file.up(service, anew=asked.build)
            case "logs":
                print((RUN / f"{service}.log").read_text(), end="")
            case _:
                file.stop(service)
                if asked.verb == "restart":
                    file.up(service, anew=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
