"""A socket in the place of systemd's."""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

PATIENCE = 60.0
_END = b"the end of the listener"


# Takes descriptors from a Unix socket, and starts a program with them as systemd does.
_START = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as way:
    way.connect("\\0" + sys.argv[1])
    names, found, *_ = socket.recv_fds(way, 4096, 16)
for at, fd in enumerate(found, 3):
    os.dup2(fd, at) if fd != at else os.set_inheritable(fd, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(found)), LISTEN_FDNAMES=names.decode())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Listener:
    """Reads what a service tells its service manager, and keeps what it hands over. Use as ``with``."""

    def __init__(self, address: str) -> None:
        """``address`` is a path, or ``@`` and an abstract name."""
        self.address = address
        self._messages: queue.Queue[tuple[float, bytes]] = queue.Queue()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._name)
        self.stored: dict[str, int] = {}
        """The descriptors that were handed over, by name."""
        # A full queue would hold up the service, as systemd never does.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._tell(_END)
        self._reader.join()
        self._socket.close()
        for descriptor in self.stored.values():
            os.close(descriptor)

    @property
    def _name(self) -> str:
        return f"\0{self.address[1:]}" if self.address.startswith("@") else self.address

    def message(self) -> list[str]:
        """The fields of the next message."""
        return self.timed()[1]

    def timed(self) -> tuple[float, list[str]]:
        """The next message, and when it came."""
        moment, data = self._messages.get(timeout=PATIENCE)
        return moment, data.decode().split("\n")

    def until(self, field: str) -> list[str]:
        """The next message with a field."""
        while field not in (message := self.message()):
            pass
        return message

    def nothing_waits(self) -> bool:
        """Whether every message has been read."""
        self._tell(b"MARK")
        return self.message() == ["MARK"]

    def starting(self, sockets: Mapping[str, int]) -> list[str]:
        """The beginning of the command line of one program, which gets these descriptors by their names."""
        way = socket.socket(socket.AF_UNIX)
        name = f"ztna-start-{os.getpid()}-{time.monotonic_ns()}"
        way.bind(f"\0{name}")
        way.listen()

        def give() -> None:
            with way, way.accept()[0] as program:
                socket.send_fds(program, [":".join(sockets).encode()], list(sockets.values()))

        threading.Thread(target=give, daemon=True).start()
        return [sys.executable, "-c", _START, name]

    def _tell(self, data: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(data, self._name)

    def _read(self) -> None:
        while True:
            data, descriptors, *_ = socket.recv_fds(self._socket, 4096, 1)
            if data == _END:
                return
            if descriptors:
                fields = dict(line.split("=", 1) for line in data.decode().split("\n"))
                self.stored[fields["FDNAME"]] = descriptors[0]
            self._messages.put((time.monotonic(), data))
