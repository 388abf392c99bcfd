"""Connections: each is admitted or rejected after its handshake, and closed when its access ends.

A rejected connection is marked before any of its messages is read: one that came with the last packet of the handshake
waits behind that decision.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from intermediate_server.access.admission import UNKNOWN_AUTHORITY, Admission, Refusal, expired
from intermediate_server.access.capacity import Places
from intermediate_server.access.succession import HAND_OVER
from intermediate_server.audit import named
from intermediate_server.engine import Command, Event
from intermediate_server.errors import CertificateError
from intermediate_server.pki import CertificateId, certificate_ids
from intermediate_server.pki.lifetime import Reminders
from intermediate_server.sessions.deadlines import Deadlines
from intermediate_server.sessions.decision_log import Decisions
from intermediate_server.sessions.registrations import Registrations
from intermediate_server.sessions.session import Session
from intermediate_server.sessions.totals import SessionTotals
from intermediate_server.types import Address, ConnectionId, Identity, Peer
from intermediate_server.wire import close_codes

REPLACED = Refusal(
    close_codes.TOO_MANY_CONNECTIONS,
    "replaced",
    "a connection with a newer certificate has taken its place",
    "a connection with a newer certificate has taken its place, and both are one too many",
)
OFFER_TIMEOUT = 20.0
"""Seconds since its handshake in which a connection must have registered something once it has made an offer: agents in
the field wait 10 s for the answer to one."""

_log = structlog.get_logger()


class Connections:
    """The connections of all sessions; the one writer of the sessions' table."""

    def __init__(
        self,
        *,
        sessions: dict[int, Session],
        submit: Callable[..., None],
        identify: Callable[[bytes], Identity],
        totals: SessionTotals,
        decisions: Decisions,
        registrations: Registrations,
        admission: Admission,
        places: Places | None,
        registration_timeout: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``registration_timeout`` in seconds; ``clock`` gives Unix time, by which certificates end."""
        self._sessions = sessions
        self._submit = submit
        self._identify = identify
        self._totals = totals
        self._decisions = decisions
        self._registrations = registrations
        self.admission = admission
        """The rules in force."""
        self._places = places
        self._clock = clock
        self.registration_timeout = registration_timeout
        self._unregistered: deque[tuple[float, int]] = deque()
        """When each connection opened, oldest first: one timer serves them all."""
        self._deadline: asyncio.TimerHandle | None = None
        self._closing: tuple[int, str] | None = None
        """Code and reason of the close of all connections, also of those whose handshake is still to come."""
        self._empty = asyncio.Event()
        self._empty.set()
        self._reminders = Reminders()
        self._expiries: Deadlines[int] = Deadlines(self._certificate_ends, clock=clock)
        self._successions: Deadlines[int] = Deadlines(self._succession_ends, clock=clock)
        """When connections with a newer certificate must have replaced one with an older."""

    def stop(self) -> None:
        """Cancel every timer and task of the connections."""
        for session in self._sessions.values():
            session.close()
        self._expiries.stop()
        self._successions.stop()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def close_all(self, code: int, reason: str) -> int:
        """Ask every connection to close, those still to come too; returns how many there are."""
        self._closing = (code, reason)
        for session in self._sessions.values():
            session.close()
        self._submit(*(Command.Close(conn, code, reason) for conn in self._sessions))
        return len(self._sessions)

    async def wait_empty(self) -> None:
        """Wait until the last connection is closed."""
        await self._empty.wait()

    def disconnect(self, conn: int, refusal: Refusal) -> bool:
        """Close one connection with its registrations; False when there is none of that id."""
        session = self._sessions.get(conn)
        if session is None or session.closing:
            return False
        self._disconnect(session, refusal)
        return True

    def use_admission(self, admission: Admission) -> int:
        """Admit by other rules from now on, live connections too; returns how many were closed.

        A CA that has left takes along the connections whose chain has its name. If another CA of that name vouches for
        a connection, its next handshake shows that.
        """
        gone = self.admission.anchors.gone(admission.anchors)
        self.admission = admission
        now = self._now()
        closed = 0
        for session in self._sessions.values():
            if session.closing:
                continue
            refusal = admission.refusal(session.peer.identity, session.chain, now)
            if refusal is None and any(item.issuer in gone for item in session.chain):
                refusal = UNKNOWN_AUTHORITY
            if refusal is not None:
                self._disconnect(session, refusal)
                closed += 1
        return closed

    def revoke(self, fingerprints: Iterable[str]) -> int:
        """Reject these certificates from now on, live connections too; returns how many were closed.

        The revocation is in a list as well, which a reload reads; this cuts without waiting for it.
        """
        revocations = self.admission.revocations
        more = replace(revocations, fingerprints=revocations.fingerprints.union(fingerprints))
        return self.use_admission(replace(self.admission, revocations=more))

    # Events

    def connected(self, event: Event.Connected) -> Session | None:
        """Admit a connection or reject it; the session of one that is to be served."""
        conn = ConnectionId(event.conn)
        address = Address.of(event.remote)
        identity: Identity | None = None
        chain: tuple[CertificateId, ...] = ()
        refusal: Refusal | None
        try:
            if event.certificates:
                identity = self._identify(event.certificates[0])
                chain = certificate_ids(event.certificates)
            refusal = self.admission.refusal(identity, chain, self._now())
            # The handshake may have begun before a reload.
            if refusal is None and not self.admission.anchors.reached(event.certificates, chain):
                refusal = UNKNOWN_AUTHORITY
        except CertificateError as error:
            identity = None
            message = "client certificate cannot be read"
            refusal = Refusal(close_codes.BAD_CERTIFICATE, "unreadable", message, str(error))
        session = Session(Peer(conn, address, identity), chain=chain, since=self._clock())
        self._enter(session)
        if refusal is None and self._places is not None:
            full = self._places.take(session.peer)
            refusal = None if full is None else Refusal(close_codes.TOO_MANY_CONNECTIONS, "connections", full, full)
        if refusal is not None:
            session.closing = True
            # The line of its refusal is its only one.
            session.logged = False
            self._submit(Command.Close(conn, refusal.code, refusal.peer_message))
            self._totals.rejected[refusal.cause] += 1
            self._decisions.connection("rejected", session.peer, cause=refusal.cause, reason=refusal.reason)
            return None
        session.logged = self._decisions.may_write("connection", session.peer)
        write = _log.info if session.logged else _log.debug
        write(
            f"New connection from {address}",
            **named(session.peer),
            handshake_ms=round(event.handshake_us / 1000, 1),
        )
        if self._closing is not None:
            session.closing = True
            self._submit(Command.Close(conn, *self._closing))
            return None
        if identity is not None:
            self._expiries.set(conn, identity.not_after.timestamp())
            if self._places is not None and self._places.predecessor(session.peer) is not None:
                self._successions.set(conn, self._clock() + HAND_OVER)
            left = self._reminders.due(identity.key_hash, identity.not_before, identity.not_after, self._now())
            if left is not None:
                until = identity.not_after.date().isoformat()
                _log.warning(
                    f"A client's certificate ends in {left} days: issue another one", until=until, **named(session.peer)
                )
        self._unregistered.append((asyncio.get_running_loop().time(), conn))
        if self._deadline is None:
            self._arm_deadline()
        return session

    def closed(self, event: Event.Closed) -> None:
        """Take a closed connection out of everything."""
        session = self._sessions.get(event.conn)
        if session is None:
            return
        self._leave(session)
        peer = session.peer
        # Each step runs even if another one fails.
        try:
            if self._places is not None:
                self._places.close(peer.conn)
        finally:
            try:
                self._successions.cancel(peer.conn)
            finally:
                try:
                    self._expiries.cancel(peer.conn)
                finally:
                    try:
                        self._registrations.closed(session, event.reason or event.cause)
                    finally:
                        self._log_closed(session, event)

    def _log_closed(self, session: Session, event: Event.Closed) -> None:
        peer, moved = session.peer, event.totals
        write = _log.info if session.logged else _log.debug
        write(
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

    def _enter(self, session: Session) -> None:
        """Put a session into the table and its count, both or neither."""
        self._sessions[session.peer.conn] = session
        self._empty.clear()
        if session.peer.identity is None:
            self._totals.anonymous += 1
        else:
            self._totals.proven += 1

    def _leave(self, session: Session) -> None:
        """Take a session out of what :meth:`_enter` put it into, and close it."""
        del self._sessions[session.peer.conn]
        if not self._sessions:
            self._empty.set()
        if session.peer.identity is None:
            self._totals.anonymous -= 1
        else:
            self._totals.proven -= 1
        session.close()

    # Connections that are no longer served

    def close_broken(self, conn: int) -> None:
        """Close a connection whose event could not be handled."""
        try:
            session = self._sessions.get(conn)
            if session is not None:
                session.close()
                self._registrations.close(session)
        finally:
            self._submit(Command.Close(conn, close_codes.INTERNAL_ERROR, "internal error"))

    def _disconnect(self, session: Session, refusal: Refusal) -> None:
        lost = tuple(session.grants)
        session.close()
        peer = session.peer
        try:
            self._registrations.close(session)
        finally:
            # With its routes in one batch, so that nothing in its queue is sent any more.
            self._submit(Command.Close(peer.conn, refusal.code, refusal.peer_message))
        self._totals.disconnected[refusal.cause] += 1
        self._decisions.connection("disconnected", peer, cause=refusal.cause, reason=refusal.reason, lost=lost)

    def _certificate_ends(self, conn: int) -> None:
        session = self._sessions.get(conn)
        if session is not None and not session.closing and session.peer.identity is not None:
            self._disconnect(session, expired(session.peer.identity))

    def _succession_ends(self, conn: int) -> None:
        """End the older connection of an identity that has one too many, and look again while there is an older one."""
        session = self._sessions.get(conn)
        if session is None or session.closing or self._places is None:
            return
        older = self._places.predecessor(session.peer)
        if older is None:
            return
        if self._places.has_surplus(session.peer) or self._registrations.has_surplus(session.peer):
            self.disconnect(older, REPLACED)
        self._successions.set(conn, self._clock() + HAND_OVER)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

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
            rest = OFFER_TIMEOUT - self.registration_timeout
            if session is not None and session.offered and rest > 0:
                asyncio.get_running_loop().call_later(rest, self._close_unregistered, conn, OFFER_TIMEOUT)
            else:
                self._close_unregistered(conn, self.registration_timeout)
        if self._unregistered:
            self._arm_deadline()

    def _close_unregistered(self, conn: int, timeout: float) -> None:
        session = self._sessions.get(conn)
        if session is None or session.registered or session.closing:
            return
        session.close()
        reason = f"nothing registered within {timeout:g} s"
        self._submit(Command.Close(conn, close_codes.NEVER_REGISTERED, reason))
        self._totals.never_registered += 1
