"""Registrations: carry out the policy's decisions, and revoke registrations that it no longer allows.

Where the policy can answer at once, as the server's own do, a registration is decided, routed and acknowledged inside
the event's dispatch: no task is made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from intermediate_server.access.quotas import OverLimit, Quotas
from intermediate_server.engine import Command
from intermediate_server.policy import (
    REAUTHORIZATIONS,
    Allow,
    Decision,
    Deny,
    Guard,
)
from intermediate_server.registry import Registry, RegistryFull
from intermediate_server.sessions.decision_log import Decisions
from intermediate_server.sessions.grants import Grants
from intermediate_server.sessions.reauthorization import WITHIN, Reauthorization, Reauthorizations
from intermediate_server.sessions.session import Session, Spawn
from intermediate_server.sessions.signaling import Signaling
from intermediate_server.sessions.totals import SessionTotals
from intermediate_server.types import Peer, Registration, Role
from intermediate_server.wire import close_codes
from intermediate_server.wire.datagrams import Ack, Nack, NackStatus, NotUtf8Registration, decode_control, encode

QUESTIONS = 4
"""Times the policy is asked at most when a reload, a move or the end of a grant makes each answer void."""

_UNSETTLED = Deny(
    "answers of the policy were void too often, by reloads, moves and ends of grants", "policy failure", temporary=True
)
_NOT_ASKED = Deny(f"the policy could not be asked within {WITHIN:g} s", "policy failure", temporary=True)

_log = structlog.get_logger()


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
        quotas: Quotas,
        decisions: Decisions,
        signaling: Signaling,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sessions = sessions
        self._submit = submit
        self._totals = totals
        self._spawn = spawn
        self._decisions = decisions
        self._signaling = signaling
        self._clock = clock
        self._reauthorizations = Reauthorizations(
            reauthorize=self._reauthorize, reauthorized=self._close_if_empty, spawn=spawn
        )
        self._grants = Grants(
            registry=registry,
            quotas=quotas,
            due=self._grant_ends,
            on_selection_error=self._selection_failed,
            clock=clock,
        )
        self._use(guard)

    def stop(self) -> None:
        """Cancel the timer and the re-authorizations."""
        self._grants.stop()
        self._reauthorizations.stop()

    @property
    def anonymous(self) -> Mapping[int, Session]:
        """Sessions without a certificate that have a registration."""
        return self._grants.anonymous

    # Answers

    def answer(self, session: Session, data: bytes) -> Registration | None:
        """Answer a message, or return the registration whose decision has to be awaited first."""
        message = decode_control(data)
        if message is None:
            self._totals.control_ignored += 1
            return None
        if isinstance(message, NotUtf8Registration):
            self._totals.denied += 1
            self._submit(Command.SendDatagram(session.peer.conn, encode(Nack(NackStatus.NOT_UTF8))))
            return None
        registration = Registration(session.peer, message.role, message.service)
        # Not the remembered answer: rules change with the time.
        decision = None if self._decide is None else self._decide(registration)
        if decision is None:
            known = session.remembered(message.role, message.service, _now())
            if known is None or self._in_time(known) is not known:
                return registration
            decision = known
        self._settle(session, registration, decision)
        return None

    async def ask(self, session: Session, registration: Registration | None) -> None:
        """Await decisions, in order, until nothing of the session waits any more."""
        try:
            while registration is not None:
                decision = await self._decided(session, registration)
                if session.closing:
                    return
                self._settle(session, registration, decision or _UNSETTLED)
                registration = None
                while registration is None and session.pending:
                    registration = self.answer(session, session.pending.pop(0))
        except Exception as error:
            # A registration that stopped halfway has left an unknown state.
            self.close(session)
            if self._decisions.may_write("failure", session.peer):
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
                # Clients ask again after silence, and give up after a NACK.
                self._refused(session, registration, decision, cause="policy", silent=True, fresh=True)
                return
            self._revoke(session, registration, decision.reason, cause="policy", rule=decision.rule)
            fresh = session.remember(role, service, decision, _now())
            self._refused(session, registration, decision, cause="policy", silent=False, fresh=fresh)
            self._close_if_empty(session)
            return
        old = session.grants.get(key)
        commands = self._grants.put(session, registration, decision)
        if isinstance(commands, OverLimit):
            denied = Deny(commands.reason, decision.rule)
            self._totals.over_limit[commands.cause] += 1
            self._revoke(session, registration, commands.reason, cause=commands.cause, rule=decision.rule)
            self._refused(session, registration, denied, cause=commands.cause, silent=False, fresh=True)
            self._close_if_empty(session)
            return
        if isinstance(commands, RegistryFull):
            full = Deny(str(commands), decision.rule)
            # Other connections may free services at any time, so the client should ask again.
            silent = commands.limit == "services"
            self._refused(session, registration, full, cause="services", silent=silent, fresh=True)
            return
        session.remember(role, service, decision, _now())
        self._granted(peer, key, old, decision)
        self._submit(*commands, Command.SendDatagram(peer.conn, encode(Ack(service))))
        self._signaling.registered(peer.conn)

    def _granted(self, peer: Peer, key: tuple[Role, str], old: Allow | None, allow: Allow) -> None:
        """Record a grant, or its change, before its ACK leaves: no grant is without its audit line."""
        if old is None:
            self._totals.registrations += 1
            self._decisions.registration("allowed", peer, key, cause="policy", rule=allow.rule)
        elif old.rule != allow.rule or old.limits != allow.limits:
            why = "its limits have changed" if old.rule == allow.rule else f"until now by {old.rule!r}"
            self._decisions.registration("allowed", peer, key, cause="reauthorization", rule=allow.rule, reason=why)
        if old is not None and old.direct and not allow.direct:
            self._signaling.revoked(peer.conn, *key, "no direct path is allowed any more")

    def _refused(
        self, session: Session, registration: Registration, denied: Deny, *, cause: str, silent: bool, fresh: bool
    ) -> None:
        self._totals.denied += 1
        key = registration.role, registration.service
        if not silent:
            self._submit(Command.SendDatagram(session.peer.conn, encode(Nack(NackStatus.NOT_AUTHORISED, key[1]))))
        if fresh:
            self._decisions.registration(
                "denied", session.peer, key, cause=cause, rule=denied.rule, reason=denied.reason
            )

    # The end of grants

    def _revoke(self, session: Session, registration: Registration, reason: str, *, cause: str, rule: str) -> bool:
        """Revoke a registration; returns whether there was one."""
        key = registration.role, registration.service
        commands = self._grants.revoke(session, key)
        if commands is None:
            return False
        self._submit(*commands)
        self._signaling.revoked(session.peer.conn, *key, reason)
        self._totals.revoked[cause] += 1
        self._decisions.registration("revoked", session.peer, key, cause=cause, rule=rule, reason=reason)
        return True

    def _close_if_empty(self, session: Session) -> None:
        """Close a connection whose registrations have all ended, so that its client notices."""
        if not session.registered or session.grants or session.closing or session.task is not None:
            return
        session.close()
        self._submit(Command.Close(session.peer.conn, close_codes.ACCESS_REVOKED, "access revoked"))
        self._totals.disconnected["access"] += 1
        reason = "nothing it had registered is allowed any more"
        self._decisions.connection("disconnected", session.peer, cause="access", reason=reason)

    def close(self, session: Session) -> None:
        """Revoke everything that a connection has registered, as it closes. Safe to repeat."""
        self._submit(*self._grants.close(session))
        self._signaling.closed(session.peer.conn)

    def closed(self, session: Session, reason: str) -> None:
        """Revoke the registrations of a closed connection, and notify the policy."""
        self.close(session)
        if session.registered and self._guard.hears_closed:
            self._spawn(self._notify_closed(session.peer, reason))

    def moved(self, session: Session, *, host_changed: bool) -> None:
        """A peer sends from another address: a policy may decide by the source network."""
        self._grants.moved(session)
        if not host_changed:
            return
        session.forget()
        if session.grants and not session.closing and self._decides_by_source:
            self._reauthorizations.add(session, cause="policy")

    def _grant_ends(self, key: tuple[int, Role, str]) -> None:
        session = self._sessions.get(key[0])
        if session is not None and not session.closing:
            session.forget((key[1], key[2]))
            self._reauthorizations.add(session, cause="expired", only=frozenset([(key[1], key[2])]))

    def has_surplus(self, peer: Peer) -> bool:
        """Whether the identity of a connection has more registered ones than its rules allow."""
        return self._grants.has_surplus(peer)

    def count_usage(self, usage: Iterable[tuple[int, int, int]]) -> None:
        """Take the engine's report of bytes by limiter, and revoke grants whose month is used up."""
        for conn in self._grants.count(usage):
            session = self._sessions.get(conn)
            if session is None or session.closing:
                continue
            for (role, service), allow in tuple(session.grants.items()):
                self._renew(session, Registration(session.peer, role, service), allow, cause="volume")
            self._close_if_empty(session)

    # The policy

    def use_policy(self, guard: Guard) -> asyncio.Future[int]:
        """Ask another policy from now on, and :meth:`reauthorize_all`."""
        chose = self._grants.select is not None
        self._use(guard)
        done = self.reauthorize_all()
        if self._grants.select is not None:
            self._choose()
        elif chose:
            # Not before all are re-authorized: the new policy may deny the connectors that the old one left out.
            done.add_done_callback(lambda _: self._choose())
        return done

    def reauthorize_all(self) -> asyncio.Future[int]:
        """Ask the policy about every registration; the result is how many ended."""
        for session in self._sessions.values():
            session.forget()
        return self._reauthorizations.add_all((s for s in self._sessions.values() if s.grants), cause="policy")

    def _choose(self) -> None:
        self._submit(*self._grants.choose())

    async def _reauthorize(self, reauthorization: Reauthorization) -> int:
        """Ask again about the registrations of a session; returns how many ended."""
        session, lost = reauthorization.session, 0
        for key in tuple(session.grants):
            registration = Registration(session.peer, *key)
            if reauthorization.only is not None and key not in reauthorization.only:
                continue
            try:
                decision = await self._decided_again(reauthorization, registration)
                if session.closing:
                    break
                lost += self._renew(session, registration, decision, cause=reauthorization.cause)
            except Exception as error:
                if self._decisions.may_write("failure", session.peer):
                    _log.error("Asking again about a registration failed", conn=session.peer.conn, exc_info=error)
                reason = "asking the policy again failed"
                lost += self._revoke(session, registration, reason, cause=reauthorization.cause, rule="")
        return lost

    def _renew(self, session: Session, registration: Registration, decision: Decision, *, cause: str) -> bool:
        """Go on with a registration under another decision, or revoke it; returns whether it ended."""
        key = (registration.role, registration.service)
        if key not in session.grants:
            return False
        if isinstance(decision, Deny):
            return self._revoke(session, registration, decision.reason, cause=cause, rule=decision.rule)
        old = session.grants[key]
        commands = self._grants.renew(session, key, decision)
        if isinstance(commands, OverLimit):
            return self._revoke(session, registration, commands.reason, cause=commands.cause, rule=decision.rule)
        self._granted(session.peer, key, old, decision)
        self._submit(*commands)
        return False

    def _in_time(self, decision: Decision) -> Decision:
        """The decision, or a denial if it is a grant whose end has passed."""
        until = decision.valid_until if isinstance(decision, Allow) else None
        if until is None or until > datetime.fromtimestamp(self._clock(), UTC):
            return decision
        return Deny(f"the grant ended at {until.isoformat()}", decision.rule)

    def _use(self, guard: Guard) -> None:
        self._guard = guard
        self._decide = guard.decide if guard.decides else None
        self._decides_by_source = guard.decides_by_source
        self._reauthorizations.workers = REAUTHORIZATIONS if self._decide is None else 1
        self._grants.select = guard.select if guard.selects else None

    async def _decided(self, session: Session, registration: Registration, *, again: bool = False) -> Decision | None:
        """The decision of the policy in force, for the peer's address at that moment; None when no answer held.

        An answer is void if a reload, a move or the end of a grant came after its question. ``again`` asks about a
        grant; a new registration comes from :meth:`answer`, which has asked for a decision at once.
        """
        at_hand = again
        for _ in range(QUESTIONS):
            guard, before = self._guard, session.reauthorizations
            registration = replace(registration, peer=session.peer)
            decision = self._decide(registration) if self._decide is not None and at_hand else None
            if decision is not None:
                return decision
            at_hand = True
            if again:
                self._reauthorizations.widen()
            decision = await (guard.reauthorize if again else guard.authorize)(registration)
            if before == session.reauthorizations:
                return decision
        return None

    async def _decided_again(self, reauthorization: Reauthorization, registration: Registration) -> Decision:
        """The decision about a grant, awaited as long as a re-authorization may last."""
        while _now() < reauthorization.ends and not reauthorization.session.closing:
            decision = await self._decided(reauthorization.session, registration, again=True)
            if decision is not None:
                return self._in_time(decision)
        return _NOT_ASKED

    async def _notify_closed(self, peer: Peer, reason: str) -> None:
        problem = await self._guard.closed(peer, reason)
        if problem is not None and self._decisions.may_write("failure", peer):
            _log.warning("Policy hook failed", conn=peer.conn, reason=problem)

    def _selection_failed(self, problem: str) -> None:
        if self._decisions.may_write("failure", None):
            _log.error("Choosing connectors failed; the service has none", reason=problem)


def _now() -> float:
    return asyncio.get_running_loop().time()
