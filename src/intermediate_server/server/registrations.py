"""Registrations: the policy's decisions carried out, and taken back when they no longer hold.

Where the policy can answer at once, as the server's own do, a registration is decided, routed and acknowledged inside
the event's dispatch: no task is made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog

from intermediate_server.admin.status import SessionTotals
from intermediate_server.engine import Command
from intermediate_server.policy import Allow, CertificatePolicy, Decision, Deny, Guard, Policy, RulesPolicy
from intermediate_server.registry import Registry, RegistryFull, SetService
from intermediate_server.server import codes
from intermediate_server.server.accounts import Accounts
from intermediate_server.server.audit import Audit
from intermediate_server.server.expiry import Deadlines
from intermediate_server.server.session import ROLE_NAMES, Session, commands
from intermediate_server.types import ConnectionId, Peer, Registration, Role
from intermediate_server.wire.datagrams import Ack, Nack, NackStatus, NotUtf8Registration, decode_control, encode

REVIEWED_AT_ONCE = 200
"""Connections looked at before others get the loop, when a policy has changed."""

REVIEWERS = 32
"""Connections that are looked at concurrently where the policy has to be waited for; half of what a guard lets ask."""

_log = structlog.get_logger()


class Spawn(Protocol):
    """Starts a task that the server waits for or cancels at its end: ``TaskGroup.create_task``."""

    def __call__(self, coro: Coroutine[Any, Any, None], /) -> asyncio.Task[None]: ...


class Registrations:
    """The registrations of all sessions; ``sessions`` is the sessions' own table, read here."""

    def __init__(
        self,
        *,
        sessions: Mapping[int, Session],
        submit: Callable[..., None],
        registry: Registry,
        guard: Guard,
        totals: SessionTotals,
        spawn: Spawn,
        accounts: Accounts,
        audit: Audit,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sessions = sessions
        self._submit = submit
        self._registry = registry
        self._totals = totals
        self._spawn = spawn
        self._accounts = accounts
        self._audit = audit
        self._clock = clock
        self._ends: Deadlines[tuple[int, Role, str]] = Deadlines(self._grant_ends, clock=clock)
        self.anonymous: dict[int, Session] = {}
        """Sessions without a certificate that have a registration."""
        self._use(guard)

    def stop(self) -> None:
        """Cancel the timer."""
        self._ends.stop()

    # Answers

    def answer(self, session: Session, data: bytes) -> Registration | None:
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
        if self._decide is not None:
            # Not the remembered answer: rules change with the time.
            decision = self._decide(registration)
        else:
            known = session.decisions.get((message.role, message.service))
            if known is None or self._in_time(known) is not known:
                return registration
            decision = known
        self._settle(session, registration, decision)
        return None

    async def ask(self, session: Session, registration: Registration | None) -> None:
        """Await decisions, in order, until nothing of the session waits any more."""
        try:
            while registration is not None:
                decision = await self._decide_now(registration)
                if session.closing:
                    return
                self._settle(session, registration, decision)
                registration = None
                while registration is None and session.pending:
                    registration = self.answer(session, session.pending.pop(0))
        except Exception as error:
            _log.error("Registration failed", conn=session.peer.conn, exc_info=error)
        finally:
            session.task = None
            self._close_if_empty(session)

    def _settle(self, session: Session, registration: Registration, decision: Decision) -> None:
        """Carry out a decision: limits and routes first and the ACK in the same batch, or a NACK."""
        role, service = registration.role, registration.service
        key, peer = (role, service), session.peer
        decision = self._in_time(decision)
        if isinstance(decision, Deny):
            if decision.temporary:
                # Clients that hear nothing ask again; those that are refused give up.
                self._refused(session, registration, decision, cause="policy", silent=True, fresh=True)
                return
            fresh = session.decisions.get(key) != decision
            session.remember(role, service, decision)
            self._withdraw(session, registration, decision.reason, cause="policy", rule=decision.rule)
            self._refused(session, registration, decision, cause="policy", silent=False, fresh=fresh)
            self._close_if_empty(session)
            return
        over = self._accounts.over_limit(peer, decision.limits)
        if over is not None:
            denied = Deny(over.reason, decision.rule)
            self._totals.limited[over.cause] += 1
            self._withdraw(session, registration, over.reason, cause=over.cause, rule=decision.rule)
            self._refused(session, registration, denied, cause=over.cause, silent=False, fresh=True)
            self._close_if_empty(session)
            return
        outcome = self._registry.register(Registration(peer, role, service))
        if isinstance(outcome, RegistryFull):
            full = Deny(str(outcome), decision.rule)
            # Others make room for services without this connection doing anything, so it may ask again.
            silent = outcome.limit == "services"
            self._refused(session, registration, full, cause="services", silent=silent, fresh=True)
            return
        session.remember(role, service, decision)
        fresh = key not in session.grants
        meter = self._grant(session, key, decision)
        self._submit(*meter, *self._commands(outcome), Command.SendDatagram(peer.conn, encode(Ack(service))))
        if not fresh:
            return
        session.registered = True
        self._totals.registrations += 1
        self._audit.record("allowed", peer, cause="policy", role=role, service=service, rule=decision.rule)
        if session.may_log():
            _log.info(
                f"Registration: {ROLE_NAMES[role]} for service {service!r}",
                conn=peer.conn,
                peer=str(peer.address),
                rule=decision.rule,
            )

    def _grant(self, session: Session, key: tuple[Role, str], allow: Allow) -> list[Command]:
        """Note by which decision something is registered; what the engine is told of its limits."""
        old = session.grants.get(key)
        if old == allow:
            return []
        peer = session.peer
        session.grants[key] = allow
        told = [] if old is not None and old.limits == allow.limits else self._accounts.hold(peer, allow.limits)
        if old is not None and old.limits != allow.limits:
            told += self._accounts.release(peer, old.limits)
        if allow.valid_until is None:
            self._ends.cancel((peer.conn, *key))
        else:
            self._ends.set((peer.conn, *key), allow.valid_until.timestamp())
        if peer.identity is None:
            self.anonymous[peer.conn] = session
        return told

    def _refused(
        self, session: Session, registration: Registration, denied: Deny, *, cause: str, silent: bool, fresh: bool
    ) -> None:
        self._totals.rejections += 1
        role, service, peer = registration.role, registration.service, session.peer
        if not silent:
            self._submit(Command.SendDatagram(peer.conn, encode(Nack(NackStatus.NOT_AUTHORISED, service))))
        if not fresh:
            return
        # A peer makes up as many names as it likes; neither log nor audit log grow with them.
        if not session.may_log():
            self._audit.skipped()
            return
        self._audit.record(
            "denied", peer, cause=cause, role=role, service=service, rule=denied.rule, reason=denied.reason
        )
        _log.warning(
            f"Registration refused: {ROLE_NAMES[role]} for service {service!r}",
            conn=peer.conn,
            peer=str(peer.address),
            reason=denied.reason,
        )

    # The end of what was granted

    def _withdraw(self, session: Session, registration: Registration, reason: str, *, cause: str, rule: str) -> bool:
        """Take a registration back that is allowed no more; whether there was one."""
        role, service, peer = registration.role, registration.service, session.peer
        allow = session.grants.pop((role, service), None)
        if allow is None:
            return False
        self._ends.cancel((peer.conn, role, service))
        changes = self._registry.withdraw(peer.conn, role, service)
        self._submit(*self._commands(changes), *self._accounts.release(peer, allow.limits))
        if not session.grants:
            self.anonymous.pop(peer.conn, None)
        self._totals.withdrawn[cause] += 1
        self._audit.record("withdrawn", peer, cause=cause, role=role, service=service, rule=rule, reason=reason)
        _log.warning(
            f"Registration withdrawn: {ROLE_NAMES[role]} for service {service!r}",
            conn=peer.conn,
            peer=str(peer.address),
            reason=reason,
        )
        return True

    def _close_if_empty(self, session: Session) -> None:
        """Close a connection that had registrations and has none left, so that its client notices."""
        if not session.registered or session.grants or session.closing or session.task is not None:
            return
        session.end()
        self._totals.cut["withdrawn"] += 1
        reason = "nothing it had registered is allowed any more"
        self._audit.record("cut", session.peer, cause="withdrawn", reason=reason)
        self._submit(Command.Close(session.peer.conn, codes.ACCESS_WITHDRAWN, "access withdrawn"))

    def drop(self, session: Session) -> None:
        """Take away everything a connection has registered, as it ends. Safe to repeat."""
        conn = session.peer.conn
        for key in session.grants:
            self._ends.cancel((conn, *key))
        session.grants.clear()
        self.anonymous.pop(conn, None)
        self._submit(*self._commands(self._registry.remove(conn)), *self._accounts.closed(conn))

    def closed(self, session: Session, reason: str) -> None:
        """Forget a connection that has ended."""
        self.drop(session)
        if session.registered and self._tells_closed:
            self._spawn(self._tell_closed(session.peer, reason))

    def moved(self, session: Session, *, host_changed: bool) -> None:
        """A peer sends from another address: a policy may decide by the source network."""
        self._registry.moved(session.peer.conn, session.peer.address)
        if not host_changed:
            return
        session.decisions.clear()
        if not session.grants or session.closing or type(self._guard.policy) is CertificatePolicy:
            return
        # One at a time, however often a peer moves: what is asked of a policy must not grow with that.
        session.moved_again = session.reviewing
        if not session.reviewing:
            session.reviewing = True
            self._spawn(self._review_moved(session))

    async def _review_moved(self, session: Session) -> None:
        try:
            session.moved_again = True
            while session.moved_again:
                session.moved_again = False
                await self._review(session, cause="policy")
        finally:
            session.reviewing = False

    def _grant_ends(self, key: tuple[int, Role, str]) -> None:
        session = self._sessions.get(key[0])
        if session is not None and not session.closing:
            session.decisions.pop((key[1], key[2]), None)
            self._spawn(self._review(session, cause="expired", only=(key[1], key[2])))

    def count_usage(self, usage: Iterable[tuple[int, int, int]]) -> None:
        """Take the engine's report of bytes by meter, and withdraw what has used up its month."""
        for conn in self._accounts.count(usage):
            session = self._sessions.get(conn)
            if session is None or session.closing:
                continue
            for (role, service), allow in tuple(session.grants.items()):
                over = self._accounts.over_limit(session.peer, allow.limits)
                if over is not None:
                    registration = Registration(session.peer, role, service)
                    self._withdraw(session, registration, over.reason, cause=over.cause, rule=allow.rule)
            self._close_if_empty(session)

    # The policy

    async def use_policy(self, guard: Guard) -> int:
        """Ask another policy from now on, about what is registered too; returns how many registrations ended."""
        chose = self._select is not None
        self._use(guard)
        lost = await self.review_all()
        if chose or self._select is not None:
            services = self._registry.services()
            self._submit(*self._commands(SetService(name, self._registry.targets(name)) for name in services))
        return lost

    async def review_all(self) -> int:
        """Ask the policy about everything that is registered; returns how many registrations ended."""
        waiting = iter(list(self._sessions.values()))

        async def reviewer() -> int:
            lost = 0
            for count, session in enumerate(waiting, start=1):
                session.decisions.clear()
                lost += await self._review_now(session, cause="policy")
                if count % REVIEWED_AT_ONCE == 0:
                    await asyncio.sleep(0)
            return lost

        lost = sum(await asyncio.gather(*(reviewer() for _ in range(1 if self._decide is not None else REVIEWERS))))
        # Only now: closing makes work of its own, and all routes go before the first connection does.
        for session in list(self._sessions.values()):
            self._close_if_empty(session)
        return lost

    async def _review(self, session: Session, *, cause: str, only: tuple[Role, str] | None = None) -> None:
        try:
            await self._review_now(session, cause=cause, only=only)
            self._close_if_empty(session)
        except Exception as error:
            _log.error("Asking again about registrations failed", conn=session.peer.conn, exc_info=error)

    async def _review_now(self, session: Session, *, cause: str, only: tuple[Role, str] | None = None) -> int:
        """Ask again about what a session has registered; returns how much of it ended."""
        lost = 0
        conn = ConnectionId(session.peer.conn)
        for registration in self._registry.registrations(conn):
            key = (registration.role, registration.service)
            if only is not None and key != only:
                continue
            decision = self._in_time(await self._decide_now(registration))
            if session.closing or self._sessions.get(conn) is not session:
                break
            if key not in session.grants:
                continue
            if isinstance(decision, Deny):
                lost += self._withdraw(session, registration, decision.reason, cause=cause, rule=decision.rule)
                continue
            over = self._accounts.over_limit(session.peer, decision.limits)
            if over is not None:
                lost += self._withdraw(session, registration, over.reason, cause=over.cause, rule=decision.rule)
            else:
                self._submit(*self._grant(session, key, decision))
        return lost

    def _in_time(self, decision: Decision) -> Decision:
        """The decision, unless it is a grant whose end has passed."""
        until = decision.valid_until if isinstance(decision, Allow) else None
        if until is None or until > datetime.fromtimestamp(self._clock(), UTC):
            return decision
        return Deny(f"the grant ended at {until.isoformat()}", decision.rule)

    def _use(self, guard: Guard) -> None:
        policy = guard.policy
        self._guard = guard
        self._decide: Callable[[Registration], Decision] | None = None
        # The exact types: a subclass may have an authorize of its own.
        if type(policy) is CertificatePolicy or type(policy) is RulesPolicy:
            self._decide = policy.decide
        self._select = None if type(policy).select is Policy.select else guard.select
        self._tells_closed = type(policy).on_closed is not Policy.on_closed

    async def _decide_now(self, registration: Registration) -> Decision:
        while True:
            guard = self._guard
            decision = await guard.authorize(registration) if self._decide is None else self._decide(registration)
            if guard is self._guard:
                return decision
            # Another policy came into force meanwhile; what the old one said counts no more.

    async def _tell_closed(self, peer: Peer, reason: str) -> None:
        problem = await self._guard.closed(peer, reason)
        if problem is not None:
            _log.warning("Policy hook failed", conn=peer.conn, reason=problem)

    def _commands(self, changes: Any) -> list[Command]:
        return commands(changes, registry=self._registry, select=self._select, on_error=_selection_failed)


def _selection_failed(problem: str) -> None:
    _log.error("Choosing connectors failed; the service has none", reason=problem)
