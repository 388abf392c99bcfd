"""The HTTP side: health, metrics and actions, and a server for them that lives inside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from intermediate_server.admin import page
from intermediate_server.admin.access import KnownHosts, action_problem
from intermediate_server.admin.metrics import ServerCollector
from intermediate_server.admin.operations import Operations
from intermediate_server.admin.status import STUCK
from intermediate_server.logs import read_connection

MAX_REQUESTS = 256
"""Requests answered at once; more get 503."""


READ = ["GET", "HEAD"]


def _answers(texts: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """The answers of a route by status, as FastAPI takes them."""
    return {status: {"description": text} for status, text in texts.items()}


def create_app(operations: Operations) -> FastAPI:
    """The application. docs/http.md is made from its routes.

    Anything else is 404, as the two actions are without a token.
    """
    app = FastAPI(title="intermediate-server", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(KnownHosts, names=operations.hosts)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ServerCollector(operations))
    state = operations.state

    @app.api_route("/healthz", methods=READ, responses=_answers({200: "`ok`"}))
    async def healthz() -> Response:
        """Whether the process answers."""
        return PlainTextResponse("ok\n")

    @app.api_route("/livez", methods=READ, responses=_answers({200: "`ok`", 503: f"`{STUCK}`"}))
    async def livez() -> Response:
        """Whether the engine turns: for whoever restarts the process."""
        if state.turning():
            return PlainTextResponse("ok\n")
        return PlainTextResponse(f"{STUCK}\n", status_code=503)

    @app.api_route(
        "/readyz",
        methods=READ,
        responses=_answers({200: "JSON: new clients are welcome", 503: "the same while they are not"}),
    )
    async def readyz() -> Response:
        """Whether new clients are welcome, and the state of the server: for balancers and people."""
        return JSONResponse(operations.status(), status_code=200 if state.ready() else 503)

    @app.api_route("/metrics", methods=READ, responses=_answers({200: "the Prometheus text format 0.0.4"}))
    async def metrics() -> Response:
        """All metrics."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @app.api_route(
        "/status", methods=READ, responses=_answers({200: "JSON, or a page for a client that accepts `text/html`"})
    )
    async def show_status(request: Request) -> Response:
        """The state of the server, and its clients, oldest first."""
        body = {**operations.status(), "clients": operations.clients()}
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(page.render(body), headers=page.HEADERS)
        return JSONResponse(body)

    @app.api_route("/anonymous", methods=READ, responses=_answers({200: "JSON"}))
    async def list_anonymous() -> Response:
        """The clients without a certificate that have a registration."""
        return JSONResponse(operations.anonymous())

    @app.api_route("/direct", methods=READ, responses=_answers({200: "JSON"}))
    async def list_direct() -> Response:
        """The last introductions for a direct path, newest first, and how many are open."""
        return JSONResponse(operations.direct())

    if operations.token:

        @app.post(
            "/reload",
            responses=_answers(
                {
                    200: "JSON: the reload is applied",
                    403: "JSON with `error`: the token is missing or wrong, or a proxy or a page brought the request",
                    422: "JSON: the reload is refused, and nothing has changed",
                }
            ),
        )
        async def reload_now(request: Request) -> Response:
            """Read configuration and files again, and wait for the re-authorization of all that is registered."""
            problem = action_problem(request, operations.token, "a reload", otherwise="; or send SIGHUP")
            if problem is not None:
                return JSONResponse({"error": problem}, status_code=403)
            outcome = await operations.reload("asked over HTTP")
            body = {
                "reloaded": outcome.error is None,
                "error": outcome.error,
                "changed": outcome.changed,
                "needs_restart": outcome.needs_restart,
                "revoked": outcome.revoked,
                "closed": outcome.closed,
            }
            return JSONResponse(body, status_code=200 if outcome.error is None else 422)

        @app.post(
            "/clients/{conn}/disconnect",
            responses=_answers(
                {
                    200: "JSON: `disconnected` is the number",
                    403: "as for a reload",
                    404: "JSON with `error`: there is no such connection",
                }
            ),
        )
        async def disconnect(request: Request, conn: str) -> Response:
            """Close one connection, by its `conn` in `/status` or its short name in the log.

            The client may come back.
            """
            problem = action_problem(request, operations.token, "a disconnect")
            if problem is not None:
                return JSONResponse({"error": problem}, status_code=403)
            named = read_connection(conn)
            if named is None or not operations.disconnect(named):
                error = "no client has this connection; /status lists them by conn"
                return JSONResponse({"error": error}, status_code=404)
            return JSONResponse({"disconnected": named})

    return app


class _Uvicorn(uvicorn.Server):
    """A uvicorn that leaves signals to the server around it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class AdminServer:
    """Serves the application on one TCP socket; a separate bind makes the port known before serving."""

    def __init__(self, operations: Operations) -> None:
        self._server = _Uvicorn(
            uvicorn.Config(
                create_app(operations),
                loop="none",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=True,
                proxy_headers=False,
                limit_concurrency=MAX_REQUESTS,
                backlog=MAX_REQUESTS,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=16_384,
            )
        )
        self._socket: socket.socket | None = None

    def bind(self, host: str, port: int) -> tuple[str, int]:
        """Bind and listen; ``port`` 0 takes a free one. Returns the address. Raises ``OSError``."""
        family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((host, port))
            # From here on requests wait instead of being refused, so a reader of the log may ask at once.
            made.listen(MAX_REQUESTS)
            made.setblocking(False)
        except OSError:
            made.close()
            raise
        self._socket = made
        bound = made.getsockname()
        return bound[0], bound[1]

    async def serve(self) -> None:
        """Answer requests until :meth:`stop`."""
        if self._socket is None:
            raise RuntimeError("bind first")
        try:
            await self._server.serve(sockets=[self._socket])
        except asyncio.CancelledError:
            # uvicorn leaves its listeners open when it is cancelled.
            for listener in getattr(self._server, "servers", []):
                listener.close()
            raise
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Ask :meth:`serve` to finish what is under way and return, within about a second."""
        self._server.should_exit = True
