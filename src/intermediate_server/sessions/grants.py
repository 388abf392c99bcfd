"""Grants: the registrations in force with the decision behind each, written here and nowhere else.

A grant stands in four places, which :class:`Grants` changes together: ``Session.grants``, the registry, the quotas and
the deadlines. Each change returns the engine's commands as one batch, limits before routes, for the caller to submit.

States of a registration, and who moves it::

    state           where it stands                             moved there by
    asked           Session.pending, or nowhere yet             Sessions (a message has come)
    pending         Session.task awaits the policy              Registrations.ask
    granted         session, registry, quotas, deadlines        put
    re-authorized   the same, under another decision            renew
    revoked         nowhere                                     revoke (one), close (all of a connection)

    asked ----> pending ----> granted ----> re-authorized        A policy that answers at once skips pending.
      |            |            |  ^              |              A denial ends asked and pending, and leaves nothing.
      +------------+-> denied   |  +--------------+
                                +-> revoked <-----+              After revoked the way begins at asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from intermediate_server.access.quotas import OverLimit, Quotas
from intermediate_server.engine import Command, Target
from intermediate_server.policy import Allow, Candidate
from intermediate_server.registry import LEAVING, Change, Registry, RegistryFull, SetService
from intermediate_server.sessions.deadlines import Deadlines
from intermediate_server.sessions.session import Select, Session
from intermediate_server.types import ConnectionId, Peer, Registration, Role

Key = tuple[Role, str]


class Grants:
    """The grants of all sessions. No method submits anything, and no peer can make one raise."""

    def __init__(
        self,
        *,
        registry: Registry,
        quotas: Quotas,
        due: Callable[[tuple[int, Role, str]], None],
        on_selection_error: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        """``due`` is called with connection, role and service when a grant ends; ``clock`` gives Unix time."""
        self._registry = registry
        self._quotas = quotas
        self._deadlines: Deadlines[tuple[int, Role, str]] = Deadlines(due, clock=clock)
        self._on_selection_error = on_selection_error
        self.select: Select | None = None
        """The policy's choice among the connectors of a service; None where it has none."""
        self.anonymous: dict[int, Session] = {}
        """Sessions without a certificate that have a grant."""

    def stop(self) -> None:
        """Cancel the timer."""
        self._deadlines.stop()

    def put(
        self, session: Session, registration: Registration, allow: Allow
    ) -> list[Command] | OverLimit | RegistryFull:
        """Grant a registration, or grant it again; a limit or a full registry refuses it and changes nothing."""
        over = self._quotas.over_limit(session.peer, allow.limits)
        if over is not None:
            return over
        changes = self._registry.register(registration)
        if isinstance(changes, RegistryFull):
            return changes
        session.registered = True
        limits = self._record(session, (registration.role, registration.service), allow)
        return [*limits, *self._routes(changes)]

    def renew(self, session: Session, key: Key, allow: Allow) -> list[Command] | OverLimit:
        """Put a grant under another decision, or keep it under its own; a limit refuses it and changes nothing."""
        over = self._quotas.over_limit(session.peer, allow.limits)
        return self._record(session, key, allow) if over is None else over

    def _record(self, session: Session, key: Key, allow: Allow) -> list[Command]:
        """Record a decision with its limits and its end."""
        old, peer = session.grants.get(key), session.peer
        if old == allow:
            return []
        session.grants[key] = allow
        commands: list[Command] = []
        if old is None or old.limits != allow.limits:
            # Held before the old is revoked: the limiter must not end in between.
            commands += self._quotas.hold(peer, allow.limits)
            if old is not None:
                commands += self._quotas.revoke(peer, old.limits)
        if allow.valid_until is None:
            self._deadlines.cancel((peer.conn, *key))
        else:
            self._deadlines.set((peer.conn, *key), allow.valid_until.timestamp())
        if peer.identity is None:
            self.anonymous[peer.conn] = session
        return commands

    def revoke(self, session: Session, key: Key) -> list[Command] | None:
        """Revoke one grant; None when there is none. The policy is asked again if the peer registers again."""
        allow = session.grants.pop(key, None)
        if allow is None:
            return None
        peer = session.peer
        session.forget(key)
        self._deadlines.cancel((peer.conn, *key))
        routes = self._routes(self._registry.revoke(peer.conn, *key))
        if not session.grants:
            self.anonymous.pop(peer.conn, None)
        return [*routes, *self._quotas.revoke(peer, allow.limits)]

    def close(self, session: Session) -> list[Command]:
        """Revoke everything that a connection has registered, as it closes. Safe to repeat."""
        conn = session.peer.conn
        keys = tuple(session.grants)
        session.grants.clear()
        session.forget()
        self.anonymous.pop(conn, None)
        commands = [*self._routes(self._registry.close(conn)), *self._quotas.close(conn)]
        for key in keys:
            self._deadlines.cancel((conn, *key))
        return commands

    def moved(self, session: Session) -> None:
        """Take over the address that a peer sends from now."""
        self._registry.moved(session.peer.conn, session.peer.address)

    def has_surplus(self, peer: Peer) -> bool:
        """Whether the identity of a connection has more registered ones than its rules allow."""
        return self._quotas.has_surplus(peer)

    def count(self, usage: Iterable[tuple[int, int, int]]) -> Iterator[ConnectionId]:
        """Take the engine's report of bytes by limiter; yields connections whose identity has reached a limit."""
        return self._quotas.count(usage)

    def choose(self) -> list[Command]:
        """Choose the connectors of every service anew."""
        names = self._registry.services()
        return self._routes(SetService(name, self._registry.targets(name)) for name in names)

    def _routes(self, changes: Iterable[Change]) -> list[Command]:
        """The registry's changes as the engine takes them, in the same order."""
        return [
            self._service(change)
            if isinstance(change, SetService)
            else Command.SetAgent(change.conn, [service.encode() for service in change.services], change.identity)
            for change in changes
        ]

    def _service(self, change: SetService) -> Command:
        """A service with its connectors; without any if the choice fails, since a failure must not bypass an
        exclusion."""
        ranks = {target.conn: target.rank for target in change.targets}
        if self.select is not None and change.targets:
            present = [target for target in change.targets if target.rank != LEAVING]
            peers = [(self._registry.peer(target.conn), target.rank) for target in present]
            candidates = [Candidate(peer, rank) for peer, rank in peers if peer is not None]
            chosen, error = self.select(change.service, candidates)
            if error is not None:
                self._on_selection_error(error)
            ranks = {candidate.peer.conn: candidate.rank for candidate in chosen}
            # A connection that was replaced shares the lot of the one in its place.
            keys = {target.key for target in present if target.conn in ranks}
            leaving = (target for target in change.targets if target.rank == LEAVING and target.key in keys)
            ranks |= {target.conn: LEAVING for target in leaving}
        return Command.SetService(
            change.service.encode(),
            [
                Target(conn=target.conn, rank=ranks[target.conn], key=target.key)
                for target in change.targets
                if target.conn in ranks
            ],
        )
