"""One unit in the place of systemd: it really runs what the unit says, without its hardening."""

from __future__ import annotations

import os
import pwd
import queue
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
import zlib
from pathlib import Path
from typing import NoReturn

from tests.docs.stand_ins.units import Unit
from tests.service_manager import Listener

JOURNAL = Path("/run/systemd/journal")
"""What each unit has printed."""
PATIENCE = 60.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KINDS = {"StateDirectory": "/var/lib", "LogsDirectory": "/var/log", "RuntimeDirectory": "/run"}


class Failure(Exception):
    """A request that has failed; its text is what systemctl says."""


class Socket:
    """A socket unit for datagrams of one address."""

    def __init__(self, unit: Unit) -> None:
        self._name = unit.last("Socket", "FileDescriptorName", unit.name)
        host, _, port = unit.last("Socket", "ListenDatagram").rpartition(":")
        host = host or "[::]"
        six = ":" in host
        self._socket = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
        if six and unit.last("Socket", "BindIPv6Only") == "both":
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self._socket.bind((host.strip("[]"), int(port)))

    def named(self) -> dict[str, int]:
        """The descriptor for the service, by its name."""
        return {self._name: self._socket.fileno()}

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


class Service:
    """A service unit: one process at a time, and what systemd does about it."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.socket: Socket | None = None
        self.active, self.since, self.text = "inactive", time.time(), ""
        self.process: subprocess.Popen[bytes] | None = None
        self._changed = threading.Condition()
        self._ready = self._stopping = False
        self._starts: list[float] = []
        address = f"/run/systemd/notify-{unit.name}"
        Path(address).unlink(missing_ok=True)
        self._listener = Listener(address)
        Path(address).chmod(0o777)
        threading.Thread(target=self._read, daemon=True).start()

    def start(self) -> None:
        """Start it and wait until it is ready. Raises :class:`Failure`."""
        if self.process is not None:
            return
        self._stopping, self._ready, self.text = False, False, ""
        self._set("activating")
        try:
            user, given = self._prepare()
        except OSError as error:
            self._note(f"Failed to start: {error}")
            self._failed()
        for before in self.unit.all("Service", "ExecStartPre"):
            if self._spawn([*user, *shlex.split(before)], given).wait(PATIENCE):
                self._failed()
        words = shlex.split(self.unit.last("Service", "ExecStart"))
        named = {**(self.socket.named() if self.socket else {}), **self._listener.stored}
        passing = self._listener.starting(named) if named else []
        process = self.process = self._spawn([*user, *passing, *words], given)
        threading.Thread(target=self._watch, args=(process,), daemon=True).start()
        kind = self.unit.last("Service", "Type", "simple")
        if kind.startswith("notify"):
            with self._changed:
                self._changed.wait_for(lambda: self._ready or process.poll() is not None, PATIENCE)
            if not self._ready:
                self._failed()
        self._set("active")

    def stop(self, *, keep: bool = False) -> None:
        """Stop it; with ``keep`` for another start, for which its sockets stay open."""
        self._stopping = True
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
        if not keep:
            while self._listener.stored:
                os.close(self._listener.stored.popitem()[1])
        for name in self.unit.words("Service", "RuntimeDirectory"):
            shutil.rmtree(f"/run/{name}", ignore_errors=True)
        self._set("inactive")

    def reload(self) -> None:
        """Run what the unit has for it."""
        if self.process is None:
            raise Failure(f"{self.unit.name} is not active, cannot reload.")
        for line in self.unit.all("Service", "ExecReload"):
            text = line.replace("$MAINPID", str(self.process.pid))
            subprocess.run(shlex.split(text), check=True, timeout=PATIENCE)

    def _failed(self) -> NoReturn:
        self._set("failed")
        raise Failure(
            f"Job for {self.unit.name} failed because the control process exited with error code.\n"
            f'See "systemctl status {self.unit.name}" and "journalctl -xeu {self.unit.name}" for details.'
        )

    def _set(self, active: str) -> None:
        with self._changed:
            self.active, self.since = active, time.time()
            self._changed.notify_all()

    def _read(self) -> None:
        while True:
            try:
                fields = self._listener.message()
            except queue.Empty:
                continue
            with self._changed:
                self._ready = self._ready or "READY=1" in fields
                self.text = next((field[7:] for field in fields if field.startswith("STATUS=")), self.text)
                self._changed.notify_all()

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        with self._changed:
            self._changed.notify_all()
        if self._stopping or process is not self.process:
            return
        self.process = None
        self._note(f"Main process exited, status={status}")
        self._set("failed" if status else "inactive")
        if status and self.unit.last("Service", "Restart", "no") in ("on-failure", "always"):
            self._starts = [start for start in self._starts if start > time.time() - 60]
            endless = self.unit.last("Unit", "StartLimitIntervalSec") == "0"
            if endless or len(self._starts) < int(self.unit.last("Unit", "StartLimitBurst", "5")):
                self._starts.append(time.time())
                time.sleep(float(self.unit.last("Service", "RestartSec", "0.1")))
                try:
                    self.start()
                except Failure as failure:
                    self._note(str(failure))

    def _note(self, text: str) -> None:
        with (JOURNAL / self.unit.name).open("a", encoding="utf-8") as journal:
            journal.write(f"{self.unit.name}: {text}\n")

    def _spawn(self, words: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (JOURNAL / self.unit.name).open("ab") as journal:
            return subprocess.Popen(
                words,
                env=environment,
                cwd=self.unit.last("Service", "WorkingDirectory", "/"),
                umask=int(self.unit.last("Service", "UMask", "0022"), 8),
                stdin=subprocess.DEVNULL,
                stdout=journal,
                stderr=journal,
                start_new_session=True,
            )

    def _prepare(self) -> tuple[list[str], dict[str, str]]:
        """What the command line begins with, and the environment; makes the directories and credentials."""
        unit = self.unit
        uid, gid = self._owner()
        environment = {
            "PATH": _PATH,
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "NOTIFY_SOCKET": self._listener.address,
        }
        for key, parent in _KINDS.items():
            for name in unit.words("Service", key):
                mode = int(unit.last("Service", f"{key}Mode", "0755"), 8)
                variable = f"{key.removesuffix('Directory').upper()}_DIRECTORY"
                environment[variable] = str(self._directory(Path(parent), name, mode, uid, gid))
        for name in unit.words("Service", "ConfigurationDirectory"):
            Path("/etc", name).mkdir(parents=True, exist_ok=True)
            environment["CONFIGURATION_DIRECTORY"] = f"/etc/{name}"
        if unit.all("Service", "LoadCredential") or unit.all("Service", "SetCredential"):
            environment["CREDENTIALS_DIRECTORY"] = self._credentials(uid, gid)
        for entry in unit.all("Service", "Environment"):
            environment |= dict(pair.split("=", 1) for pair in shlex.split(entry))
        groups = unit.words("Service", "SupplementaryGroups")
        words = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--no-new-privs"]
        words.append(f"--groups={','.join(groups)}" if groups else "--clear-groups")
        capabilities = [word.removeprefix("CAP_").lower() for word in unit.words("Service", "AmbientCapabilities")]
        kept = "".join(f",+{word}" for word in capabilities)
        if uid:
            words += [f"--inh-caps=-all{kept}", f"--ambient-caps=-all{kept}", f"--bounding-set=-all{kept}"]
        return words, environment

    def _owner(self) -> tuple[int, int]:
        user = self.unit.last("Service", "User")
        try:
            found = pwd.getpwnam(user)
        except KeyError:
            pass
        else:
            return found.pw_uid, found.pw_gid
        if self.unit.last("Service", "DynamicUser") == "yes":
            number = 61184 + zlib.crc32((user or self.unit.name).encode()) % 4336
            return number, number
        return 0, 0

    def _directory(self, parent: Path, name: str, mode: int, uid: int, gid: int) -> Path:
        place = parent / name
        if self.unit.last("Service", "DynamicUser") == "yes" and parent != Path("/run") and uid >= 61184:
            private = parent / "private"
            private.mkdir(exist_ok=True)
            # 0700 in truth, and opened for the service alone.
            private.chmod(0o711)
            if place.exists() and not place.is_symlink():
                place.rename(private / name)
            (private / name).mkdir(exist_ok=True)
            if not place.is_symlink():
                place.symlink_to(f"private/{name}")
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(mode)
        if place.stat().st_uid != uid:
            for path in (place, *place.rglob("*")):
                os.chown(path, uid, gid, follow_symlinks=path == place)
        return place

    def _credentials(self, uid: int, gid: int) -> str:
        place = Path("/run/credentials", self.unit.name)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        given = dict(entry.split(":", 1) for entry in self.unit.all("Service", "SetCredential"))
        found = {name: text.encode().decode("unicode_escape").encode() for name, text in given.items()}
        for entry in self.unit.all("Service", "LoadCredential"):
            name, _, source = entry.partition(":")
            if source and (Path(source).exists() or name not in found):
                found[name] = Path(source).read_bytes()
        for name, data in found.items():
            (place / name).write_bytes(data)
            (place / name).chmod(0o400)
            os.chown(place / name, uid, gid)
        os.chown(place, uid, gid)
        place.chmod(0o500)
        return str(place)
