"""An event loop that ends at once when it is told to, without a wait for look-ups of names."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class Loop(asyncio.SelectorEventLoop):
    """Looks names up on threads of their own, and does not wait for these at the end.

    A silent name server holds a thread for half a minute. asyncio waits for its own pool when a program ends, and the
    pool has few threads: hanging names would hold up all others.
    """

    def __init__(self) -> None:
        super().__init__()
        self._look_ups: dict[tuple[Any, ...], asyncio.Future[Any]] = {}
        """One for each distinct question under way."""

    async def getaddrinfo(self, host: Any, port: Any, **options: int) -> Any:
        """As ``socket.getaddrinfo``."""
        question = (host, port, *sorted(options.items()))
        answer = self._look_ups.get(question)
        if answer is None:
            answer = self._look_ups[question] = self.create_future()
            answer.add_done_callback(lambda done: self._answered(question, done))
            ask = threading.Thread(target=self._ask, args=(answer, host, port, options), name="look-up", daemon=True)
            ask.start()
        return await asyncio.shield(answer)

    def _answered(self, question: tuple[Any, ...], answer: asyncio.Future[Any]) -> None:
        del self._look_ups[question]
        if not answer.cancelled():
            # The asking task may be gone; that is no unhandled error.
            answer.exception()

    def _ask(self, answer: asyncio.Future[Any], host: Any, port: Any, options: dict[str, int]) -> None:
        settle: Callable[[], None]
        try:
            found = socket.getaddrinfo(host, port, **options)
            settle = lambda: answer.set_result(found)  # noqa: E731
        except Exception as error:
            failure = error
            settle = lambda: answer.set_exception(failure)  # noqa: E731
        with suppress(RuntimeError):  # the loop has ended meanwhile
            self.call_soon_threadsafe(settle)


def run(main: Coroutine[Any, Any, T]) -> T:
    """As ``asyncio.run``, on a :class:`Loop`."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(main)
