"""A socket in the place of systemd's."""

from __future__ import annotations

import queue
import socket
import threading
import time
from types import TracebackType
from typing import Self

PATIENCE = 60.0
_END = b"the end of the listener"


class Listener:
    """Reads what a service tells its service manager. Use as ``with``."""

    def __init__(self, address: str) -> None:
        """``address`` is a path, or ``@`` and an abstract name."""
        self.address = address
        self._messages: queue.Queue[tuple[float, bytes]] = queue.Queue()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._name)
        # A full queue would hold up the service, as systemd never does.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._tell(_END)
        self._reader.join()
        self._socket.close()

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

    def _tell(self, data: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(data, self._name)

    def _read(self) -> None:
        while (data := self._socket.recv(4096)) != _END:
            self._messages.put((time.monotonic(), data))
