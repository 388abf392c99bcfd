"""The life of a server process: start, serve, reload, drain, exit."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from time import monotonic

import structlog

from intermediate_server import logs
from intermediate_server.admin import AdminServer, ServerCollector, SessionTotals, Status, create_app
from intermediate_server.admin.status import ANONYMOUS_WARNING
from intermediate_server.config import Settings
from intermediate_server.engine import Engine, EngineError
from intermediate_server.engine.bridge import Bridge
from intermediate_server.pki import identity_of
from intermediate_server.policy import CertificatePolicy, Guard, load_policy
from intermediate_server.registry import Registry
from intermediate_server.server.drain import drain
from intermediate_server.server.drops import DropLog
from intermediate_server.server.listening import Trust, listen_config, load_trust
from intermediate_server.server.reload import Reloader
from intermediate_server.server.sessions import Sessions
from intermediate_server.types import Address

PULSE = 1.0
"""Seconds between two looks at the engine's counters."""

ADMIN_STOP = 1.5
"""Seconds the HTTP server has to finish what is under way."""

_log = structlog.get_logger()


def run(settings: Settings, reload: Callable[[], Settings]) -> int:
    """Serve until SIGTERM, SIGINT or a failure of the engine; the process's exit code, 0 after a drain.

    ``reload`` gives the settings as they are written now; it is called on SIGHUP, on another thread, and may raise
    ``ConfigError`` and ``CertificateError``. At the start those errors leave here, before anything listens.
    """
    logs.configure(level=settings.log_level, format=settings.log_format)
    trust = load_trust(settings)
    return asyncio.run(_Process(settings, trust).run(reload))


class _Process:
    """What one running server consists of."""

    def __init__(self, settings: Settings, trust: Trust) -> None:
        self._settings = settings
        self._trust = trust
        self._registry = Registry(max_services_per_connection=settings.services_per_connection)
        self._totals = SessionTotals()
        self._status = Status(
            client_auth=settings.client_auth,
            anonymous_allowed=_anonymous(settings),
            external_ip=None if settings.external_ip is None else str(settings.external_ip),
            certificate_not_after=trust.not_after,
            half_open_limit=settings.max_half_open,
        )
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reload_asked = asyncio.Event()
        self._failed = False

    async def run(self, read: Callable[[], Settings]) -> int:
        """Serve to the end; returns the exit code."""
        self._guard = _guard(self._settings)
        self._engine = Engine(outbox_capacity=self._settings.outbox_capacity)
        try:
            # What happens before the bridge dispatches waits in the outbox.
            bound = self._engine.listen(listen_config(self._settings, self._trust))
            self._status.addresses = tuple(str(Address.of(pair)) for pair in bound)
            async with asyncio.TaskGroup() as tasks:
                await self._serve(tasks, read)
        except (EngineError, OSError) as error:
            _log.error("Server failed to start", reason=str(error))
            return 1
        except ExceptionGroup as group:
            for each in group.exceptions:
                _log.error("Server failed", reason=str(each), exc_info=each)
            return 1
        finally:
            self._engine.close(0)
            await self._guard.aclose()
        return 1 if self._failed else 0

    async def _serve(self, tasks: asyncio.TaskGroup, read: Callable[[], Settings]) -> None:
        settings = self._settings
        bridge = Bridge(self._engine)
        sessions = Sessions(
            submit=bridge.submit,
            registry=self._registry,
            guard=self._guard,
            identify=identity_of,
            totals=self._totals,
            spawn=tasks.create_task,
            registration_timeout=settings.registration_timeout,
            control_pending=settings.control_per_connection,
        )
        self._sessions = sessions
        reloader = Reloader(settings=settings, read=read, submit=bridge.submit, status=self._status, apply=self._apply)
        admin = self._bind_admin(bridge)
        bridge.start(sessions.dispatch)
        background = [
            tasks.create_task(self._pulse()),
            tasks.create_task(self._watch(bridge)),
            tasks.create_task(self._reload_when_asked(reloader)),
        ]
        http = None if admin is None else tasks.create_task(_serve_admin(admin))
        self._handle_signals()
        self._status.accepting = True
        self._announce()
        try:
            await self._stop.wait()
            if not self._failed:
                await drain(
                    bridge=bridge,
                    engine=self._engine,
                    sessions=sessions,
                    status=self._status,
                    grace=reloader.settings.drain_grace,
                    hurry=self._hurry,
                    now=monotonic,
                )
            if admin is not None and http is not None:
                admin.stop()
                await asyncio.wait((http,), timeout=ADMIN_STOP)
                http.cancel()
        finally:
            for task in background:
                task.cancel()
            sessions.stop()
            bridge.stop()
        _log.info("Server stopped", failed=self._failed)

    def _bind_admin(self, bridge: Bridge) -> AdminServer | None:
        settings = self._settings
        if settings.metrics_port == 0:
            return None
        collector = ServerCollector(
            engine=self._engine,
            status=self._status,
            totals=self._totals,
            counts=lambda: self._registry.counts,
            lag=bridge.lag,
            dispatch_errors=lambda: bridge.dispatch_errors,
        )
        admin = AdminServer(create_app(status=self._status, collector=collector, counters=self._engine.counters))
        host = str(settings.metrics_bind)
        try:
            address = Address.of(admin.bind(host, settings.metrics_port))
        except OSError as error:
            raise OSError(
                error.errno, f"{host} port {settings.metrics_port} for health and metrics: {error.strerror}"
            ) from error
        _log.info(f"Admin listening on http://{address}", host=host, port=address.port)
        return admin

    def _announce(self) -> None:
        """Say what is served and with which trust; the listening lines come last, they mean that all is ready."""
        _log.info("Server certificate", origin=self._trust.origin, expires=self._trust.not_after.isoformat())
        for warning in self._engine.socket_warnings():
            _log.warning(warning)
        if self._status.anonymous_allowed:
            _log.warning(ANONYMOUS_WARNING, client_auth=self._settings.client_auth)
        if self._status.external_ip is not None:
            _log.info("Reached from outside at", external_ip=self._status.external_ip)
        for address in self._status.addresses:
            _log.info(f"Server listening on {address}", address=address)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_asked, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload_asked.set)

    def _stop_asked(self, number: signal.Signals) -> None:
        _log.info(f"Received {signal.Signals(number).name}")
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _pulse(self) -> None:
        """Once a second: the log of drops, and whether the engine still turns."""
        drops = DropLog(self._engine)
        while True:
            counters = drops.tick()
            self._status.observe_ticks(counters["ticks"], monotonic())
            await asyncio.sleep(PULSE)

    async def _watch(self, bridge: Bridge) -> None:
        reason = await bridge.wait_failed()
        _log.error("Engine failed", reason=reason)
        self._failed = True
        self._status.accepting = False
        self._stop.set()
        self._hurry.set()

    async def _reload_when_asked(self, reloader: Reloader) -> None:
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            await reloader.reload()

    async def _apply(self, settings: Settings) -> None:
        """Take over the settings of a reload that are no matter of TLS."""
        self._sessions.registration_timeout = settings.registration_timeout
        if settings.client_auth == self._status.client_auth:
            return
        self._status.client_auth = settings.client_auth
        self._status.anonymous_allowed = _anonymous(settings)
        if settings.policy is None:
            old, self._guard = self._guard, _guard(settings)
            lost = await self._sessions.use_policy(self._guard)
            await old.aclose()
            _log.warning("Client authentication changed", client_auth=settings.client_auth, withdrawn=lost)


def _anonymous(settings: Settings) -> bool:
    return settings.policy is None and settings.client_auth != "required"


def _guard(settings: Settings) -> Guard:
    if settings.policy is not None:
        return Guard(load_policy(settings.policy))
    return Guard(CertificatePolicy(anonymous=_anonymous(settings)))


async def _serve_admin(admin: AdminServer) -> None:
    """Serve HTTP; the relay goes on without it should it fail."""
    try:
        await admin.serve()
    except Exception as error:
        _log.error("Health and metrics have stopped", exc_info=error)
