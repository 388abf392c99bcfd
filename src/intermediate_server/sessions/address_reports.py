"""Address reports (QAD): each peer is told where it is seen, at once and after every change, at a bounded rate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from intermediate_server.engine import Command
from intermediate_server.sessions.decision_log import Decisions
from intermediate_server.sessions.session import Session
from intermediate_server.sessions.totals import SessionTotals
from intermediate_server.wire.datagrams import ObservedAddress, encode

REPORT_INTERVAL = 0.1
"""Seconds between two reports to one connection; the newest address is always sent in the end."""

_log = structlog.get_logger()


class AddressReports:
    """The reports to all sessions."""

    def __init__(self, *, submit: Callable[..., None], totals: SessionTotals, decisions: Decisions) -> None:
        self._submit = submit
        self._totals = totals
        self._decisions = decisions

    def send(self, session: Session) -> None:
        """Report the present address now."""
        session.next_report = asyncio.get_running_loop().time() + REPORT_INTERVAL
        peer = session.peer
        self._submit(Command.SendDatagram(peer.conn, encode(ObservedAddress(peer.address))))
        self._totals.address_reports += 1
        if self._decisions.may_write("report", peer):
            _log.info(f"Sent QAD to {peer.address}", conn=peer.conn)

    def changed(self, session: Session) -> None:
        """Report another address, now or as soon as the interval allows; then the newest one is sent."""
        if session.closing or session.report_timer is not None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= session.next_report:
            self.send(session)
        else:
            session.report_timer = loop.call_at(session.next_report, self._late, session)

    def _late(self, session: Session) -> None:
        session.report_timer = None
        if not session.closing:
            self.send(session)
