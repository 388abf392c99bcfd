"""One session for each connection: it reports the address, registers, and cleans up whichever way it ends.

Everything runs on the event loop, called by the bridge for each event. Where the policy can answer at once, as the
server's own does, a registration is decided, routed and acknowledged inside the event's dispatch: no task is made.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import structlog

from intermediate_server.admin.status import SessionTotals
from intermediate_server.engine import Command, Event
from intermediate_server.errors import CertificateError
from intermediate_server.policy import CertificatePolicy, Decision, Deny, Guard, Policy
from intermediate_server.registry import Registry, RegistryFull
from intermediate_server.server import codes
from intermediate_server.server.session import ROLE_NAMES, Session, commands
from intermediate_server.types import Address, ConnectionId, Identity, Peer, Registration
from intermediate_server.wire.datagrams import (
    Ack,
    Nack,
    NackStatus,
    NotUtf8Registration,
    ObservedAddress,
    decode_control,
    encode,
)

REPORT_INTERVAL = 0.1
"""Seconds between two QAD messages to one connection; the newest address is always sent in the end."""

FAILURES_LOGGED = 10
"""Failed handshakes logged in a second; the counters have them all."""

REEVALUATED_AT_ONCE = 200
"""Connections looked at before others get the loop, when a policy has changed."""

_log = structlog.get_logger()


class Spawn(Protocol):
    """Starts a task that the server waits for or cancels at its end: ``TaskGroup.create_task``."""

    def __call__(self, coro: Coroutine[Any, Any, None], /) -> asyncio.Task[None]: ...


class Sessions:
    """All sessions; :meth:`dispatch` is the bridge's handler."""

    def __init__(
        self,
        *,
        submit: Callable[..., None],
        registry: Registry,
        guard: Guard,
        identify: Callable[[bytes], Identity],
        totals: SessionTotals,
        spawn: Spawn,
        registration_timeout: float = 10.0,
        control_pending: int = 64,
    ) -> None:
        """``registration_timeout`` in seconds; ``control_pending`` messages of one connection may await a decision."""
        self._submit = submit
        self._registry = registry
        self._identify = identify
        self._totals = totals
        self._spawn = spawn
        self._control_pending = control_pending
        self.registration_timeout = registration_timeout
        self._sessions: dict[int, Session] = {}
        self._unregistered: deque[tuple[float, int]] = deque()
        """When each connection opened, oldest first: one timer serves them all."""
        self._deadline: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self._failures_second = 0
        self._failures = 0
        self._use(guard)
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            Event.Connected: self._connected,
            Event.Control: self._control,
            Event.Closed: self._closed,
            Event.AddressChanged: self._address_changed,
            Event.HandshakeFailed: self._handshake_failed,
        }

    # What others ask of the sessions

    def dispatch(self, event: Event) -> None:
        """Handle one event; those that no server gets are ignored."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def close_all(self, code: int, reason: str) -> int:
        """Ask every connection to end; returns how many there are."""
        for session in self._sessions.values():
            session.end()
        self._submit(*(Command.Close(conn, code, reason) for conn in self._sessions))
        return len(self._sessions)

    async def wait_empty(self) -> None:
        """Wait until the last connection is gone."""
        await self._empty.wait()

    def stop(self) -> None:
        """Cancel every timer and task of the sessions."""
        for session in self._sessions.values():
            session.end()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    async def use_policy(self, guard: Guard) -> int:
        """Ask another policy from now on, about what is registered too; returns how many lost a registration."""
        self._use(guard)
        lost = 0
        for count, (conn, session) in enumerate(list(self._sessions.items()), start=1):
            session.decisions.clear()
            for registration in self._registry.registrations(ConnectionId(conn)):
                decision = await self._decide_now(registration)
                if self._sessions.get(conn) is not session:
                    break
                if isinstance(decision, Deny):
                    self._withdraw(session, registration, decision)
                    lost += 1
            if count % REEVALUATED_AT_ONCE == 0:
                await asyncio.sleep(0)
        return lost

    # Events

    def _connected(self, event: Event.Connected) -> None:
        conn = ConnectionId(event.conn)
        address = Address.of(event.remote)
        identity: Identity | None = None
        problem: str | None = None
        if event.certificates:
            try:
                identity = self._identify(event.certificates[0])
            except CertificateError as error:
                problem = str(error)
        session = Session(Peer(conn, address, identity))
        self._sessions[conn] = session
        self._empty.clear()
        if identity is None:
            self._totals.anonymous += 1
        else:
            self._totals.proven += 1
        _log.info(
            f"New connection from {address}",
            conn=conn,
            identity="anonymous" if identity is None else identity.fingerprint,
            handshake_ms=round(event.handshake_us / 1000, 1),
        )
        if problem is not None:
            _log.warning(f"Client certificate of {address} refused", conn=conn, reason=problem)
            session.closing = True
            self._submit(Command.Close(conn, codes.BAD_CERTIFICATE, "client certificate cannot be read"))
            return
        now = asyncio.get_running_loop().time()
        self._report_address(session, now)
        self._unregistered.append((now, conn))
        if self._deadline is None:
            self._arm_deadline()

    def _control(self, event: Event.Control) -> None:
        session = self._sessions.get(event.conn)
        if session is None or session.closing:
            return
        full = session.task is not None and len(session.pending) >= self._control_pending
        if full or not session.takes(asyncio.get_running_loop().time()):
            self._totals.control_dropped += 1
        elif session.task is not None:
            session.pending.append(event.data)
        else:
            registration = self._answer(session, event.data)
            if registration is not None:
                session.task = self._spawn(self._ask(session, registration))

    def _address_changed(self, event: Event.AddressChanged) -> None:
        session = self._sessions.get(event.conn)
        if session is None:
            return
        old, new = session.peer, Address.of(event.remote)
        session.peer = Peer(old.conn, new, old.identity)
        # A policy may decide by the source network.
        session.decisions.clear()
        self._registry.moved(old.conn, new)
        if session.may_log():
            _log.info(f"Address changed from {old.address} to {new}", conn=old.conn)
        if session.closing or session.report_timer is not None:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now >= session.next_report:
            self._report_address(session, now)
        else:
            session.report_timer = loop.call_at(session.next_report, self._report_late, session)

    def _closed(self, event: Event.Closed) -> None:
        session = self._sessions.pop(event.conn, None)
        if session is None:
            return
        session.end()
        peer = session.peer
        if peer.identity is None:
            self._totals.anonymous -= 1
        else:
            self._totals.proven -= 1
        changes = self._registry.remove(peer.conn)
        if changes:
            self._submit(*self._commands(changes))
        moved = event.totals
        _log.info(
            "Connection closed",
            peer=str(peer.address),
            conn=peer.conn,
            cause=event.cause,
            code=event.code,
            reason=event.reason,
            duration_s=round(event.duration_us / 1e6, 3),
            received_datagrams=moved.received_datagrams,
            received_bytes=moved.received_bytes,
            sent_datagrams=moved.sent_datagrams,
            sent_bytes=moved.sent_bytes,
            dropped=moved.dropped,
        )
        if session.registered and self._tells_closed:
            self._spawn(self._tell_closed(peer, event.reason or event.cause))
        if not self._sessions:
            self._empty.set()

    def _handshake_failed(self, event: Event.HandshakeFailed) -> None:
        second = int(asyncio.get_running_loop().time())
        if second != self._failures_second:
            self._failures_second, self._failures = second, 0
        self._failures += 1
        if self._failures <= FAILURES_LOGGED:
            _log.info(f"Handshake failed with {Address.of(event.remote)}", reason=event.reason)

    # Addresses

    def _report_address(self, session: Session, now: float) -> None:
        session.next_report = now + REPORT_INTERVAL
        peer = session.peer
        self._submit(Command.SendDatagram(peer.conn, encode(ObservedAddress(peer.address))))
        self._totals.address_reports += 1
        if session.may_log():
            _log.info(f"Sent QAD to {peer.address}", conn=peer.conn)

    def _report_late(self, session: Session) -> None:
        session.report_timer = None
        if not session.closing:
            self._report_address(session, asyncio.get_running_loop().time())

    # Registrations

    def _answer(self, session: Session, data: bytes) -> Registration | None:
        """Answer a message, or return the registration whose decision has to be awaited first."""
        message = decode_control(data)
        if message is None:
            self._totals.control_ignored += 1
            return None
        if isinstance(message, NotUtf8Registration):
            self._totals.rejections += 1
            self._submit(Command.SendDatagram(session.peer.conn, encode(Nack(NackStatus.NOT_UTF8))))
            return None
        registration = Registration(session.peer, message.role, message.service)
        decision = session.decisions.get((message.role, message.service))
        if decision is None:
            if self._decide is None:
                return registration
            decision = self._decide(registration)
        self._settle(session, registration, decision)
        return None

    async def _ask(self, session: Session, registration: Registration | None) -> None:
        """Await decisions, in order, until nothing of the session waits any more."""
        try:
            while registration is not None:
                decision = await self._guard.authorize(registration)
                if session.closing:
                    return
                self._settle(session, registration, decision)
                registration = None
                while registration is None and session.pending:
                    registration = self._answer(session, session.pending.popleft())
        except Exception as error:
            _log.error("Registration failed", conn=session.peer.conn, exc_info=error)
        finally:
            session.task = None

    def _settle(self, session: Session, registration: Registration, decision: Decision) -> None:
        """Carry out a decision: routes first and the ACK in the same batch, or a NACK."""
        role, service = registration.role, registration.service
        conn = session.peer.conn
        if isinstance(decision, Deny):
            fresh = (role, service) not in session.decisions
            if decision.temporary:
                # Clients that hear nothing ask again; those that are refused give up.
                self._refused(session, registration, decision.reason, silent=True, log=True)
                return
            session.remember(role, service, decision)
            self._withdraw(session, registration, decision)
            self._refused(session, registration, decision.reason, silent=False, log=fresh)
            return
        outcome = self._registry.register(Registration(session.peer, role, service))
        if isinstance(outcome, RegistryFull):
            self._refused(session, registration, str(outcome), silent=False, log=True)
            return
        self._submit(*self._commands(outcome), Command.SendDatagram(conn, encode(Ack(service))))
        session.remember(role, service, decision)
        if (role, service) in session.granted:
            return
        session.granted.add((role, service))
        session.registered = True
        self._totals.registrations += 1
        if session.may_log():
            _log.info(
                f"Registration: {ROLE_NAMES[role]} for service {service!r}",
                conn=conn,
                peer=str(session.peer.address),
                rule=decision.rule,
            )

    def _refused(self, session: Session, registration: Registration, reason: str, *, silent: bool, log: bool) -> None:
        self._totals.rejections += 1
        if not silent:
            nack = encode(Nack(NackStatus.NOT_AUTHORISED, registration.service))
            self._submit(Command.SendDatagram(session.peer.conn, nack))
        if log and session.may_log():
            _log.warning(
                f"Registration refused: {ROLE_NAMES[registration.role]} for service {registration.service!r}",
                conn=session.peer.conn,
                peer=str(session.peer.address),
                reason=reason,
            )

    def _withdraw(self, session: Session, registration: Registration, decision: Deny) -> None:
        """Take a registration back that is allowed no more."""
        if (registration.role, registration.service) not in session.granted:
            return
        session.granted.discard((registration.role, registration.service))
        changes = self._registry.withdraw(session.peer.conn, registration.role, registration.service)
        self._submit(*self._commands(changes))
        _log.warning(
            f"Registration withdrawn: {ROLE_NAMES[registration.role]} for service {registration.service!r}",
            conn=session.peer.conn,
            peer=str(session.peer.address),
            reason=decision.reason,
        )

    # The policy

    def _use(self, guard: Guard) -> None:
        policy = guard.policy
        self._guard = guard
        self._decide = policy.decide if type(policy) is CertificatePolicy else None
        self._select = None if type(policy).select is Policy.select else guard.select
        self._tells_closed = type(policy).on_closed is not Policy.on_closed

    async def _decide_now(self, registration: Registration) -> Decision:
        return await self._guard.authorize(registration) if self._decide is None else self._decide(registration)

    async def _tell_closed(self, peer: Peer, reason: str) -> None:
        problem = await self._guard.closed(peer, reason)
        if problem is not None:
            _log.warning("Policy hook failed", conn=peer.conn, reason=problem)

    def _commands(self, changes: Any) -> list[Command]:
        return commands(changes, registry=self._registry, select=self._select, on_error=_selection_failed)

    # The deadline for a first registration

    def _arm_deadline(self) -> None:
        opened, _ = self._unregistered[0]
        self._deadline = asyncio.get_running_loop().call_at(opened + self.registration_timeout, self._expire)

    def _expire(self) -> None:
        self._deadline = None
        limit = asyncio.get_running_loop().time() - self.registration_timeout
        while self._unregistered and self._unregistered[0][0] <= limit:
            _, conn = self._unregistered.popleft()
            session = self._sessions.get(conn)
            if session is None or session.registered or session.closing:
                continue
            session.end()
            self._totals.never_registered += 1
            reason = f"nothing registered within {self.registration_timeout:g} s"
            self._submit(Command.Close(conn, codes.NEVER_REGISTERED, reason))
        if self._unregistered:
            self._arm_deadline()


def _selection_failed(problem: str) -> None:
    _log.error("Choosing connectors failed; the service has none", reason=problem)
