"""Tells systemd how the program is: its notification protocol (sd_notify(3)) and its watchdog."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from typing import Self

PATIENCE = 0.5
"""Seconds that a message may wait for room in the queue of the service manager."""

EXTENSION = 10.0
"""Seconds by which a program that ends asks for more time, again each ``EXTENSION / 4``."""

_LONGEST = 500
"""Characters of a status line; the rest is left out."""


class ServiceManager:
    """The service manager that has started this program; without one every message is dropped."""

    def __init__(self, address: str | None, *, watchdog: float | None = None) -> None:
        """``address`` is the path of a datagram socket, or ``@`` and an abstract name; ``watchdog`` is in seconds."""
        self._address = None if address is None else f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog = watchdog
        self._ending = False
        self._said = ""

    @classmethod
    def from_environment(cls, env: MutableMapping[str, str] = os.environ) -> Self:
        """The one that the environment names; the names leave it, since they are not for programs that we start."""
        address = env.pop("NOTIFY_SOCKET", "")
        microseconds, process = env.pop("WATCHDOG_USEC", ""), env.pop("WATCHDOG_PID", "")
        ours = process in ("", str(os.getpid())) and microseconds.isdecimal() and int(microseconds) > 0
        usable = address[:1] in ("/", "@") and len(address) > 1
        return cls(address if usable else None, watchdog=int(microseconds) / 1e6 if ours and usable else None)

    def ready(self, status: str) -> None:
        """The program serves now."""
        self._send("READY=1", self._status(status))

    def status(self, text: str) -> None:
        """One line for ``systemctl status``; what was said last is not sent again."""
        if text != self._said and not self._send(self._status(text), patience=0):
            self._said = ""

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Around a reload; its outcome is for the log, since the program goes on in any case."""
        if not self._ending:
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            yield
        finally:
            if not self._ending:
                self._send("READY=1")

    def stopping(self, status: str) -> None:
        """The program ends, on its own or because it was asked to."""
        self._ending = True
        self._send("STOPPING=1", self._status(status))

    async def keep_alive(self, healthy: Callable[[], bool]) -> None:
        """Feed the watchdog while ``healthy()``, until cancelled; without a watchdog nothing is to be done."""
        while self.watchdog is not None:
            if healthy():
                self._send("WATCHDOG=1", patience=0)
            await asyncio.sleep(self.watchdog / 4)

    async def ask_for_time(self) -> None:
        """Put off the time limit of the end again and again, until cancelled: the end has a limit of its own."""
        while self._address is not None:
            self._send(f"EXTEND_TIMEOUT_USEC={round(EXTENSION * 1e6)}")
            await asyncio.sleep(EXTENSION / 4)

    def keep(self, name: str, descriptor: int) -> None:
        """Hand over a descriptor to be given back after a restart (``FileDescriptorStoreMax=`` of the unit)."""
        # Without FDPOLL=0 an error of the socket, such as of a network that is gone, has systemd close it.
        self._send("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", descriptors=[descriptor])

    def forget(self, name: str) -> None:
        """Have a descriptor that was handed over closed."""
        self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    @property
    def present(self) -> bool:
        """Whether there is a service manager."""
        return self._address is not None

    def _status(self, text: str) -> str:
        self._said = text
        line = "".join(char if char.isprintable() else " " for char in text)
        return f"STATUS={line[:_LONGEST]}"

    def _send(self, *fields: str, descriptors: Sequence[int] = (), patience: float = PATIENCE) -> bool:
        if self._address is None:
            return True
        # A service manager that is gone, or busy for too long, is no reason to end.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.settimeout(patience)
            out.connect(self._address)
            socket.send_fds(out, ["\n".join(fields).encode()], descriptors)
            return True
        return False
