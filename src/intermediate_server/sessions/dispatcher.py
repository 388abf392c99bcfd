"""The dispatcher hands each event of the engine to its room, and each question of others to the room that answers it.

Everything runs on the event loop, called by the bridge for each event. One session stands for each connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from intermediate_server.access.admission import Admission, Refusal
from intermediate_server.access.capacity import Places
from intermediate_server.access.quotas import Quotas
from intermediate_server.audit import Audit
from intermediate_server.engine import Event
from intermediate_server.pki import certificate_ids
from intermediate_server.policy import Guard
from intermediate_server.registry import Registry
from intermediate_server.sessions.address_reports import AddressReports
from intermediate_server.sessions.connections import Connections
from intermediate_server.sessions.decision_log import Decisions
from intermediate_server.sessions.failed_handshakes import FailedHandshakes
from intermediate_server.sessions.registrations import Registrations
from intermediate_server.sessions.session import Session, Spawn
from intermediate_server.sessions.signaling import Signaling
from intermediate_server.sessions.totals import SessionTotals
from intermediate_server.signaling import Book
from intermediate_server.types import Address, Identity, Peer

_log = structlog.get_logger()


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
        admission: Admission | None = None,
        places: Places | None = None,
        quotas: Quotas | None = None,
        audit: Audit | None = None,
        book: Book | None = None,
        note_addresses: Callable[[Event.ReservedAddresses], None] = lambda _: None,
        join: Callable[[Event.JoinRequest], None] = lambda _: None,
        registration_timeout: float = 10.0,
        control_pending: int = 64,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``registration_timeout`` in seconds; ``control_pending`` messages of one connection may await a decision.

        ``note_addresses`` records the inner addresses of an identity. ``join`` answers those who ask to join, later and
        each of them. ``clock`` gives Unix time: certificates and grants end by it.
        """
        self._totals = totals
        self._spawn = spawn
        self._control_pending = control_pending
        self._sessions: dict[int, Session] = {}
        audit = audit or Audit()
        self.decisions = Decisions(audit)
        self.handshakes = FailedHandshakes(audit)
        self._reports = AddressReports(submit=submit, totals=totals, decisions=self.decisions)
        self.signaling = Signaling(
            sessions=self._sessions, submit=submit, book=book or Book(), decisions=self.decisions
        )
        self.registrations = Registrations(
            sessions=self._sessions,
            submit=submit,
            registry=registry,
            guard=guard,
            totals=totals,
            spawn=spawn,
            quotas=quotas or Quotas(),
            decisions=self.decisions,
            signaling=self.signaling,
            clock=clock,
        )
        self.connections = Connections(
            sessions=self._sessions,
            submit=submit,
            identify=identify,
            totals=totals,
            decisions=self.decisions,
            registrations=self.registrations,
            admission=admission or Admission(),
            places=places,
            registration_timeout=registration_timeout,
            clock=clock,
        )
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            Event.Connected: self._connected,
            Event.Control: self._control,
            Event.Closed: self.connections.closed,
            Event.AddressChanged: self._address_changed,
            Event.ReservedAddresses: note_addresses,
            Event.HandshakeFailed: self.handshakes.failed,
            Event.JoinRequest: join,
            Event.Signal: self.signaling.signal,
            Event.SignalEnded: self.signaling.stream_ended,
            Event.SignalDropped: self.signaling.dropped,
            Event.RouteFound: self.signaling.route_found,
            Event.Inspected: self.signaling.inspected,
        }

    def dispatch(self, event: Event) -> None:
        """Handle one event; events of clients are ignored.

        An exception is raised again after it has ended the event's connection, whose state is unknown by then.
        """
        handler = self._handlers.get(type(event))
        if handler is None:
            return
        try:
            handler(event)
        except BaseException:
            if isinstance(event, (Event.Connected, Event.Control, Event.AddressChanged, Event.Signal)):
                self.connections.close_broken(event.conn)
            raise

    # Questions of others

    @property
    def live(self) -> Mapping[int, Session]:
        """The sessions by connection, oldest first."""
        return self._sessions

    @property
    def registration_timeout(self) -> float:
        """Seconds in which a connection must have registered something."""
        return self.connections.registration_timeout

    @registration_timeout.setter
    def registration_timeout(self, seconds: float) -> None:
        self.connections.registration_timeout = seconds

    def close_all(self, code: int, reason: str) -> int:
        """Ask every connection to close, those still to come too; returns how many there are."""
        self.signaling.drain()
        return self.connections.close_all(code, reason)

    async def wait_empty(self) -> None:
        """Wait until the last connection is closed."""
        await self.connections.wait_empty()

    def connected_certificates(self) -> frozenset[str]:
        """The fingerprints of the certificates that are connected."""
        peers = (session.peer.identity for session in self._sessions.values() if not session.closing)
        return frozenset(identity.fingerprint for identity in peers if identity is not None)

    def denied(self, der: bytes) -> str | None:
        """Why a certificate is refused whoever shows it; may be called on another thread. Raises
        ``CertificateError``."""
        return self.connections.admission.revocations.refusal(certificate_ids([der]))

    def disconnect(self, conn: int, refusal: Refusal) -> bool:
        """Close one connection with its registrations; False when there is none of that id."""
        return self.connections.disconnect(conn, refusal)

    def use_admission(self, admission: Admission) -> int:
        """Admit by other rules from now on, live connections too; returns how many were closed."""
        return self.connections.use_admission(admission)

    def stop(self) -> None:
        """Cancel every timer and task of the sessions."""
        self.connections.stop()
        self.decisions.stop()
        self.registrations.stop()
        self.signaling.stop()

    # Events

    def _connected(self, event: Event.Connected) -> None:
        session = self.connections.connected(event)
        if session is not None:
            self._reports.send(session)

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
            registration = self.registrations.answer(session, event.data)
            if registration is not None:
                session.task = self._spawn(self.registrations.ask(session, registration))

    def _address_changed(self, event: Event.AddressChanged) -> None:
        session = self._sessions.get(event.conn)
        if session is None:
            return
        old, new = session.peer, Address.of(event.remote)
        session.peer = Peer(old.conn, new, old.identity)
        self.registrations.moved(session, host_changed=new.host != old.address.host)
        if self.decisions.may_write("address", session.peer):
            _log.info(f"Address changed from {old.address} to {new}", conn=old.conn)
        self._reports.changed(session)
