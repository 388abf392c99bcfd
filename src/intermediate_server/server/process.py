"""The life of a server process: start, serve, reload, drain, exit."""

from __future__ import annotations

import asyncio
import secrets
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic

import structlog

from intermediate_server import hangup, logs
from intermediate_server.access.capacity import Places, fit
from intermediate_server.access.loading import access_warnings, describe_policy, files_of
from intermediate_server.access.quotas import Quotas
from intermediate_server.access.usage import MonthlyUsage
from intermediate_server.admin import AdminServer, Status
from intermediate_server.admin.access import ensure_token
from intermediate_server.audit import Audit
from intermediate_server.compat.files import unread_file
from intermediate_server.config import Settings
from intermediate_server.engine import Command, Engine, EngineError
from intermediate_server.engine.bridge import Bridge
from intermediate_server.errors import ConfigError
from intermediate_server.file_watch import Watch
from intermediate_server.loop import run as run_loop
from intermediate_server.notify import ServiceManager
from intermediate_server.pki import ensure_secrets, identity_of, temporary_secrets
from intermediate_server.pki.keys import utc_now
from intermediate_server.policy import Guard, Policy, make_policy
from intermediate_server.registry import Registry
from intermediate_server.server.drain import Stopping, drain
from intermediate_server.server.engine_log import DropLog
from intermediate_server.server.host import STATELESS, AdminPort, advise, note_relay, open_state
from intermediate_server.server.joining import start_joining
from intermediate_server.server.listener import listen_config, signaling_settings
from intermediate_server.server.operations import Operations
from intermediate_server.server.own_certificate import renew_in_time
from intermediate_server.server.reload import Loaded, Reloader, load
from intermediate_server.server.reserved_addresses import Addresses
from intermediate_server.server.sockets import take_sockets
from intermediate_server.sessions.dispatcher import Sessions
from intermediate_server.sessions.session import Spawn
from intermediate_server.sessions.totals import SessionTotals
from intermediate_server.signaling import Book
from intermediate_server.types import Address

PULSE = 1.0
"""Seconds between two looks at the engine's counters."""

SAVE_EVERY = 5.0
"""Seconds between two writes of the monthly usage."""

_log = structlog.get_logger()


def run(
    settings: Settings,
    reload: Callable[[], Settings],
    *,
    config_file: Path | None = None,
    warnings: Sequence[str] = (),
) -> int:
    """Serve until SIGTERM, SIGINT or a failure of the engine; the process's exit code, 0 after a drain.

    ``reload`` reads the settings again; it is called at a reload, on another thread, and may raise ``ConfigError`` and
    ``CertificateError``. A start raises these errors before anything listens. ``config_file`` is the source of the
    settings; it is watched for changes. ``warnings`` are about them.
    """
    logs.configure(level=settings.log_level, format=settings.log_format)
    logs.log_configuration(config_file, warnings)
    return run_loop(_Process(load(settings), config_file).run(reload))


class _Process:
    """The parts of one running server."""

    def __init__(self, loaded: Loaded, config_file: Path | None) -> None:
        """Raises ``ConfigError`` and ``OSError``."""
        settings = loaded.settings
        self._settings = settings
        self._loaded = loaded
        self._config_file = config_file
        self._policy: Policy = loaded.policy or make_policy(settings)
        self._registry = Registry(max_services_per_connection=settings.services_per_connection)
        self._totals = SessionTotals()
        self._status = Status(
            client_auth=settings.client_auth,
            external_ip=None if settings.external_ip is None else str(settings.external_ip),
        )
        self._capacity = fit(settings)
        self._audit = Audit(settings.audit_log)
        self._stopping = Stopping()
        self._manager = ServiceManager.from_environment()
        self._reload_asked = asyncio.Event()
        self._failed = False

    async def run(self, read: Callable[[], Settings]) -> int:
        """Serve to the end; returns the exit code."""
        self._guard = Guard(self._policy)
        state = open_state(self._settings)
        self._usage = MonthlyUsage(state)
        # A token that cannot be kept is of no use: then SIGHUP is the way to a reload.
        kept = state is not None and self._settings.metrics_port != 0
        self._admin_token = ensure_token(self._settings.state_dir) if kept else secrets.token_urlsafe(32)
        self._status.usage_lost = STATELESS if state is None else self._usage.lost
        self._addresses = Addresses(self._settings.state_dir)
        self._status.addresses_lost = lambda: self._addresses.trouble
        self._describe(self._loaded)
        self._engine = Engine(outbox_capacity=self._settings.outbox_capacity)
        try:
            sockets = take_sockets(self._settings, self._manager)
            # Events wait in the outbox until the bridge dispatches.
            bound = self._engine.listen(
                listen_config(
                    self._settings,
                    self._loaded.trust,
                    temporary_secrets() if state is None else ensure_secrets(state),
                    max_connections=self._capacity.connections,
                    sockets=[each.fileno() for each in sockets],
                    known_addresses=self._addresses.known,
                    known_in_part=self._addresses.in_part,
                )
            )
            for taken in sockets:
                taken.close()
            self._addresses.known = []
            self._bound = [Address.of(pair) for pair in bound]
            self._status.addresses = tuple(map(str, self._bound))
            self._noting = state is not None
            if self._noting:
                note_relay(self._settings, self._bound[0].port)
            async with asyncio.TaskGroup() as tasks:
                await self._serve(tasks, read)
        except (EngineError, OSError) as error:
            _log.error("Server failed to start", reason=advise(str(error)))
            return 1
        except ExceptionGroup as group:
            for each in group.exceptions:
                # A taken port is no defect: a traceback would hide its message.
                expected = isinstance(each, (EngineError, OSError))
                _log.error("Server failed", reason=str(each), exc_info=None if expected else each)
            return 1
        finally:
            self._engine.close(0)
            await self._guard.aclose()
            await self._usage.aclose()
            await self._addresses.aclose()
            await self._audit.aclose()
        return 1 if self._failed else 0

    async def _serve(self, tasks: asyncio.TaskGroup, read: Callable[[], Settings]) -> None:
        settings = self._settings
        bridge = Bridge(self._engine)
        self._status.turning = lambda: bridge.watchdog.turning
        sessions = Sessions(
            submit=bridge.submit,
            registry=self._registry,
            guard=self._guard,
            identify=identity_of,
            totals=self._totals,
            spawn=tasks.create_task,
            admission=self._loaded.admission,
            places=Places(per_source=self._capacity.per_source, per_identity=self._capacity.per_identity),
            quotas=Quotas(self._usage),
            note_addresses=self._addresses.note,
            join=lambda event: self._joining.request(event),  # noqa: PLW0108 - it is made below
            book=Book(signaling_settings(settings, self._bound)),
            audit=self._audit,
            registration_timeout=settings.registration_timeout,
            control_pending=settings.control_per_connection,
        )
        self._sessions = sessions
        self._bridge = bridge
        self._spawn: Spawn = tasks.create_task
        self._joining = start_joining(sessions, submit=bridge.submit, audit=self._audit, state_dir=settings.state_dir)
        self._joining.follow(settings, self._loaded.trust, self._bound[0].port)
        self._status.joining = self._joining.describe

        def read_new() -> Settings:
            watch.take()
            return read()

        reloader = Reloader(
            settings=settings,
            admission=self._loaded.admission,
            read=read_new,
            status=self._status,
            apply=self._apply,
            around=self._manager.reloading,
        )
        watch = Watch(
            lambda: files_of(reloader.settings, self._config_file), lambda: reloader.start("a file has changed")
        )
        watch.take()
        operations = Operations(
            engine=self._engine,
            bridge=bridge,
            sessions=sessions,
            registry=self._registry,
            totals=self._totals,
            state=self._status,
            reloader=reloader,
            stopping=self._stopping,
            audit=self._audit,
            usage=self._usage,
            addresses=self._addresses,
            joins=self._joining.totals,
            token=self._admin_token,
            hosts=settings.admin_hosts,
        )
        admin = self._bind_admin(operations)
        bridge.start(sessions.dispatch)
        background = [
            tasks.create_task(self._pulse()),
            tasks.create_task(self._watch(bridge)),
            tasks.create_task(self._reload_when_asked(reloader)),
            tasks.create_task(watch.run()),
            tasks.create_task(renew_in_time(lambda: self._renew_at, reloader.start, clock=utc_now)),
            tasks.create_task(self._save_usage()),
            tasks.create_task(self._addresses.run()),
            tasks.create_task(self._joining.run()),
            tasks.create_task(self._manager.keep_alive(lambda: bridge.turning)),
        ]
        http = None if admin is None else tasks.create_task(admin.serve())
        self._handle_signals(operations)
        self._status.accepting = True
        self._announce()
        self._manager.ready(self._state())
        try:
            await self._stopping.asked.wait()
            self._manager.stopping("draining" if not self._failed else "the engine has failed")
            background.append(tasks.create_task(self._manager.ask_for_time()))
            if not self._failed:
                await drain(
                    bridge=bridge,
                    engine=self._engine,
                    sessions=sessions,
                    status=self._status,
                    grace=reloader.settings.drain_grace,
                    hurry=self._stopping.hurry,
                    now=monotonic,
                )
            if admin is not None and http is not None:
                await admin.stop(http)
        finally:
            for task in background:
                task.cancel()
            sessions.registrations.count_usage(self._engine.usage())
            sessions.handshakes.count(_failed_handshakes(self._engine.counters()), last=True)
            self._joining.stop()
            sessions.stop()
            bridge.stop()
        _log.info("Server stopped", failed=self._failed)

    def _bind_admin(self, operations: Operations) -> AdminPort | None:
        settings = self._settings
        if settings.metrics_port == 0:
            return None
        port = AdminPort(AdminServer(operations), str(settings.metrics_bind), settings.metrics_port)
        port.bind()
        return port

    def _announce(self) -> None:
        """Log policy and trust; the listening lines come last, since they mean that all is ready."""
        trust = self._loaded.trust
        if trust.new_ca is not None:
            _log.info(f"Made a CA for agents and connectors: {trust.new_ca}")
            where = shlex.quote(str(trust.new_ca.parent))
            command = "token create SERVICE" if self._settings.joining else "pki issue connector NAME --service SERVICE"
            _log.info(f"Next, let a device join: intermediate-server {command} --state-dir {where}")
        _log.info("Server certificate", origin=trust.origin, expires=trust.not_after.isoformat())
        revocations = self._loaded.admission.revocations
        _log.info(
            "Access is decided by",
            policy=self._status.policy,
            revoked=len(revocations.serials),
            denied=len(revocations.fingerprints),
        )
        most = self._capacity
        _log.info(
            "Room for connections", in_all=most.connections, per_source=most.per_source, per_identity=most.per_identity
        )
        unread = unread_file() if self._config_file is None else None
        if unread is not None:
            _log.warning(f"{unread} is not read; name it with --config, see docs/migration.md")
        for warning in self._engine.socket_warnings():
            _log.warning(warning)
        for warning in self._status.warnings:
            _log.warning(warning)
        if self._status.external_ip is not None:
            _log.info("Reached from outside at", external_ip=self._status.external_ip)
        for address in self._status.addresses:
            _log.info(f"Server listening on {address}", address=address)

    def _handle_signals(self, operations: Operations) -> None:
        def stop(number: signal.Signals) -> None:
            _log.info(f"Received {number.name}")
            operations.drain()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop, number)
        hangup.deliver(loop, self._reload_asked.set)

    async def _pulse(self) -> None:
        """Once a second: log drops and failed handshakes, and count usage."""
        drops = DropLog(self._engine)
        overdue = self._status.crl_overdue()
        while True:
            counters = drops.tick()
            self._sessions.registrations.count_usage(self._engine.usage())
            self._sessions.handshakes.count(_failed_handshakes(counters))
            self._sessions.decisions.sweep(asyncio.get_running_loop().time())
            was, overdue = overdue, self._status.crl_overdue()
            if not self._stopping.asked.is_set():
                self._manager.status(self._state())
            if overdue and not was:
                _log.warning("The revocation list is past its time; what it revokes stays revoked")
            await asyncio.sleep(PULSE)

    def _state(self) -> str:
        """One line for the service manager."""
        live, services = len(self._sessions.live), len(self._registry.services())
        return f"listening on {', '.join(self._status.addresses)}; {live} connections, {services} services"

    async def _save_usage(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY)
            await self._usage.save()

    async def _watch(self, bridge: Bridge) -> None:
        reason = await bridge.wait_failed()
        _log.error("Engine failed", reason=reason)
        self._failed = True
        self._status.accepting = False
        self._stopping.at_once()

    async def _reload_when_asked(self, reloader: Reloader) -> None:
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            try:
                # A rotation of logs sends this signal, so it reopens them even if the reload is refused.
                self._audit.reopen(reloader.settings.audit_log)
            except ConfigError as error:
                _log.error("The audit log stays where it was", reason=str(error))
            await reloader.start("SIGHUP")

    def _apply(self, loaded: Loaded) -> tuple[asyncio.Future[int], int]:
        """Take over a new configuration; returns the re-authorization and how many connections were closed."""
        old, settings = self._settings, loaded.settings
        if settings.audit_log != old.audit_log:
            self._audit.reopen(settings.audit_log)
        self._settings = settings
        if self._noting:
            self._spawn(asyncio.to_thread(note_relay, settings, self._bound[0].port))
        self._bridge.submit(Command.SetServerTls(loaded.trust.tls))
        self._joining.follow(settings, loaded.trust, self._bound[0].port)
        self._sessions.registration_timeout = settings.registration_timeout
        self._sessions.signaling.use(signaling_settings(settings, self._bound))
        registrations = self._sessions.registrations
        closed = self._sessions.use_admission(loaded.admission)
        if loaded.policy is None:
            reauthorization = registrations.reauthorize_all()
        else:
            last, self._guard, self._policy = self._guard, Guard(loaded.policy), loaded.policy
            reauthorization = registrations.use_policy(self._guard)
            # Its end may take seconds, for which nothing waits.
            self._spawn(last.aclose(keep_policy=last.policy is self._policy))
        known = self._status.warnings
        self._describe(loaded)
        for warning in self._status.warnings:
            if warning not in known:
                _log.warning(warning)
        return reauthorization, closed

    def _describe(self, loaded: Loaded) -> None:
        """Write the settings in force into the status."""
        status = self._status
        status.client_auth = loaded.settings.client_auth
        status.policy = describe_policy(loaded.settings)
        access = access_warnings(loaded.settings, self._policy)
        status.warnings = (*self._capacity.warnings, *access, *loaded.trust.tls.warnings())
        self._renew_at = loaded.trust.renew_at
        status.certificate_not_after = loaded.trust.not_after
        status.crl_next_update = loaded.admission.revocations.next_update


def _failed_handshakes(counters: Mapping[str, int]) -> int:
    return counters["handshake_failed"] + counters["handshake_refused_chain"] + counters["handshake_timeout"]
