"""An engine without a network: the same interface, for tests of what is built on the bridge."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Sequence

from intermediate_server.engine import Command, Event, ListenConfig, ServiceCounters


class FakeEngine:
    """Gives out the events it was handed and keeps the batches it was given."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events: deque[Event] = deque()
        self.batches: list[list[Command]] = []
        """Every applied batch, oldest first."""
        self.counter_values: dict[str, int] = {}
        """What is counted beside the ticks, of which there is another at each look."""
        self._ticks = 0
        self.drop_values: dict[str, int] = {}
        self.usage_values: list[tuple[int, int, int]] = []
        self.service_values: list[ServiceCounters] = []
        self.tunnel_values: dict[int, dict[str, int]] = {}
        self.closed_with: int | None = None

    @property
    def commands(self) -> list[Command]:
        """All commands of all batches in order."""
        return [command for batch in self.batches for command in batch]

    def inject(self, *events: Event) -> None:
        """Let ``events`` happen."""
        self._events.extend(events)
        os.eventfd_write(self._fd, 1)

    def fileno(self) -> int:
        return self._fd

    def drain(self, maximum: int) -> list[Event]:
        taken = [self._events.popleft() for _ in range(min(maximum, len(self._events)))]
        if not self._events:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)
        return taken

    def apply(self, commands: Sequence[Command]) -> None:
        self.batches.append(list(commands))

    def listen(self, config: ListenConfig) -> list[tuple[str, int]]:
        return [("127.0.0.1", 4433)]

    def counters(self) -> dict[str, int]:
        self._ticks += 1
        return {"ticks": self._ticks, **self.counter_values}

    def drops(self) -> dict[str, int]:
        return self.drop_values

    def drops_by_class(self) -> dict[tuple[str, str], int]:
        return {(reason, "certificate"): count for reason, count in self.drop_values.items()}

    def usage(self) -> list[tuple[int, int, int]]:
        taken, self.usage_values = self.usage_values, []
        return taken

    def services(self) -> list[ServiceCounters]:
        return self.service_values

    def tunnel_counters(self, tunnel: int) -> dict[str, int]:
        return self.tunnel_values.get(tunnel, {})

    def socket_warnings(self) -> list[str]:
        return []

    def close(self, timeout_ms: int) -> None:
        self.closed_with = timeout_ms
