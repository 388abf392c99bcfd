"""In the place of the first process of systemd.

It is told what to do over a Unix socket, one request a connection: the words after ``systemctl`` as JSON. The answer
has ``status`` and ``said``.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.docs.stand_ins.service import JOURNAL, Failure, Service, Socket
from tests.docs.stand_ins.units import Unit, full_name, load

CONTROL = Path("/run/systemd/control")


class Manager:
    """All units of the host."""

    def __init__(self) -> None:
        self._services: dict[str, Service] = {}
        self._sockets: dict[str, Socket] = {}
        self._lock = threading.Lock()

    def answer(self, words: list[str]) -> dict[str, Any]:
        """Do what the words after ``systemctl`` say."""
        try:
            verb, names = words[0], [full_name(word) for word in words[1:] if not word.startswith("-")]
            now = "--now" in words
            said = "".join(self._do(verb, name, now=now) for name in names or [""])
            asleep = verb in ("status", "is-active") and any(self._service(name).active != "active" for name in names)
            return {"status": 3 if asleep else 0, "said": said}
        except (Failure, LookupError) as error:
            return {"status": 1 if isinstance(error, Failure) else 5, "said": f"{error}\n"}

    def _do(self, verb: str, name: str, *, now: bool) -> str:
        if verb == "daemon-reload":
            for service in self._services.values():
                with suppress(LookupError):
                    service.unit = load(service.unit.name)
            return ""
        if name.endswith(".socket"):
            return self._socket(verb, load(name), now=now)
        service = self._service(name)
        match verb:
            case "enable" | "disable":
                return self._enable(verb, service.unit) + (
                    self._do({"enable": "start", "disable": "stop"}[verb], name, now=False) if now else ""
                )
            case "start":
                service.start()
            case "stop":
                service.stop()
            case "restart":
                service.stop(keep=True)
                service.start()
            case "reload":
                service.reload()
            case "status":
                return self._status(service)
            case "is-active":
                return f"{service.active}\n"
            case _:
                raise Failure(f"this stand-in of systemctl does not know {verb}")
        return ""

    def _service(self, name: str) -> Service:
        with self._lock:
            if name not in self._services:
                self._services[name] = Service(load(name))
            service = self._services[name]
            service.socket = self._sockets.get(name.replace(".service", ".socket"))
            return service

    def _socket(self, verb: str, unit: Unit, *, now: bool) -> str:
        said = self._enable(verb, unit) if verb in ("enable", "disable") else ""
        if verb in ("start", "restart") or (verb == "enable" and now):
            if unit.name not in self._sockets:
                self._sockets[unit.name] = Socket(unit)
        elif (verb == "stop" or (verb == "disable" and now)) and unit.name in self._sockets:
            self._sockets.pop(unit.name).close()
        return said

    def _enable(self, verb: str, unit: Unit) -> str:
        said = ""
        for target in unit.words("Install", "WantedBy"):
            link = Path(f"/etc/systemd/system/{target}.wants/{unit.name}")
            if verb == "enable" and not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(unit.path)
                said += f"Created symlink {link} → {unit.path}.\n"
            elif verb == "disable" and link.is_symlink():
                link.unlink()
                said += f"Removed {link}.\n"
        return said

    def _status(self, service: Service) -> str:
        unit, process = service.unit, service.process
        enabled = any(Path("/etc/systemd/system").glob(f"*.wants/{unit.name}"))
        state = {"active": "active (running)", "inactive": "inactive (dead)"}.get(service.active, service.active)
        since = time.strftime("%a %Y-%m-%d %H:%M:%S UTC", time.gmtime(service.since))
        mark = {"active": "●", "failed": "\N{MULTIPLICATION SIGN}"}.get(service.active, "○")
        lines = [
            f"{mark} {unit.name} - {unit.last('Unit', 'Description')}",
            f"     Loaded: loaded ({unit.path}; {'enabled' if enabled else 'disabled'}; preset: enabled)",
            f"     Active: {state} since {since}; {round(time.time() - service.since)}s ago",
        ]
        if process is not None:
            lines.append(f"   Main PID: {process.pid} (intermediate-se)")
        if service.text:
            lines.append(f'     Status: "{service.text}"')
        journal = JOURNAL / unit.name
        last = journal.read_text(encoding="utf-8").splitlines()[-10:] if journal.exists() else []
        return "\n".join([*lines, "", *last]) + "\n"


def main() -> None:
    """Answer until the host ends."""
    JOURNAL.mkdir(parents=True, exist_ok=True)
    manager = Manager()
    with socket.socket(socket.AF_UNIX) as listening:
        new = CONTROL.with_suffix(".new")
        listening.bind(str(new))
        listening.listen()
        new.rename(CONTROL)
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=_serve, args=(manager, connection), daemon=True).start()


def _serve(manager: Manager, connection: socket.socket) -> None:
    with connection, connection.makefile("rw", encoding="utf-8") as stream:
        json.dump(manager.answer(json.loads(stream.readline())), stream)


if __name__ == "__main__":
    main()
