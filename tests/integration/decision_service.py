"""A web service that decides about registrations, as an operator would write one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import uvicorn

from tests.integration.conftest import PATIENCE

Scope = MutableMapping[str, Any]


Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Service:
    """A web service that answers as it is told, run by uvicorn on a thread of its own."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b'{"allow": true, "rule": "all"}'
        self.headers: list[tuple[bytes, bytes]] = []
        self.questions: list[dict[str, Any]] = []
        self.requests: list[dict[str, str]] = []
        self.release = threading.Event()
        self.release.set()
        self.held: set[str] | None = None
        """The services whose questions wait for ``release``; None for all."""
        self.together = self.most = 0
        self.address = ("", 0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}/decide"

    async def __call__(self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        question = json.loads(body)
        self.questions.append(question)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append({"path": scope["path"], "method": scope["method"], **headers})
        self.together += 1
        self.most = max(self.most, self.together)
        gone = asyncio.ensure_future(receive())
        held = self.held is None or question["service"] in self.held
        while held and not self.release.is_set() and not gone.done():  # noqa: ASYNC110 - another thread releases
            await asyncio.sleep(0.005)
        gone.cancel()
        self.together -= 1
        with contextlib.suppress(OSError):
            await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
            await send({"type": "http.response.body", "body": self.body})


@contextlib.contextmanager
def running(service: Service, **options: Any) -> Iterator[Service]:
    """The service on a free port of loopback while the block runs."""
    server = uvicorn.Server(
        uvicorn.Config(service, lifespan="off", log_config=None, timeout_graceful_shutdown=1, **options)
    )
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        # asyncio only sets it on sockets that name their protocol; without it each answer waits for a delayed ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        service.address = listener.getsockname()
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield service
        finally:
            service.release.set()
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()
