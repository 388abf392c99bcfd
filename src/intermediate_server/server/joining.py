"""Joining at a running server: requests go to the issuer on a thread of its own, and its answers to the engine.

The thread is the only one that touches ``identity.db`` and the signer's command, which may both be slow. A database
that is damaged or a disk that is full costs joins and renewals, and never the relay.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from intermediate_server.audit import Audit
from intermediate_server.config import Settings
from intermediate_server.engine import Command, Event
from intermediate_server.errors import CertificateError
from intermediate_server.join.issuer import UNAVAILABLE, Issuer, Outcome, Relay, failed
from intermediate_server.join.relay import servers_of
from intermediate_server.join.totals import JoinTotals
from intermediate_server.pki import Authority, keys
from intermediate_server.pki.signer import Signer
from intermediate_server.pki.store import Issued, Store
from intermediate_server.server.join_log import JoinLog
from intermediate_server.server.listener import Trust
from intermediate_server.sessions.dispatcher import Sessions
from intermediate_server.types import Address

WAITING = 64
"""Requests that may wait for the issuer; the engine has fewer under way."""

PATIENCE = 10.0
"""Seconds after which a request has ended at the engine, so that nobody reads an answer."""

SWEEP = 10.0
"""Seconds between two looks at the identities."""

GRACE = 60.0
"""Seconds since the start before an ephemeral identity may end: while no relay ran, none could connect."""

BUSY = "the relay has too many requests to answer; ask again in a minute"
OFF = "this relay issues no certificates; ask its operator for one"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Request:
    event: Event.JoinRequest
    address: Address
    until: float
    """By the monotonic clock."""


@dataclass(frozen=True, slots=True)
class _Sweep:
    """A look at the identities; ``live`` are the fingerprints of the certificates that are connected."""

    live: frozenset[str]
    may_end: bool


@dataclass(frozen=True, slots=True)
class _Swept:
    ended: tuple[Issued, ...] = ()
    """The certificates of the identities that have ended."""
    identities: Mapping[str, int] | None = None
    ephemeral: bool = False
    """Whether there are ephemeral identities."""
    trouble: str = ""


def start_joining(sessions: Sessions, *, submit: Callable[..., None], audit: Audit, state_dir: Path) -> Joining:
    """The joining of a server with these sessions; it issues nothing yet."""
    return Joining(
        submit=submit,
        log=JoinLog(audit, sessions.decisions.may_write),
        revoke=sessions.connections.revoke,
        connected=sessions.connected_certificates,
        denied=sessions.denied,
        store=Store(state_dir),
    )


class Joining:
    """Answers the engine's requests to join; belongs to the event loop."""

    def __init__(
        self,
        *,
        submit: Callable[..., None],
        log: JoinLog,
        revoke: Callable[[Collection[str]], object],
        connected: Callable[[], frozenset[str]] = frozenset,
        denied: Callable[[bytes], str | None] = lambda _: None,
        store: Store,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``revoke`` closes connections, and refuses those to come, by the fingerprints of their certificates.

        ``connected`` gives the fingerprints of all that are connected; ``denied`` is that of :class:`Issuer`. The
        thread alone uses ``store``. ``clock`` gives Unix time.
        """
        self.totals = JoinTotals()
        self._submit = submit
        self._log = log
        self._revoke = revoke
        self._connected = connected
        self._denied = denied
        self._store = store
        self._clock = clock
        self._begin = time.monotonic()
        self._issuer: Issuer | None = None
        self._state = "off"
        self._busy: Issuer | None = None
        """The issuer that the thread is in."""
        self._queue: queue.SimpleQueue[_Request | _Sweep | None] = queue.SimpleQueue()
        self._waiting = 0
        self._sweeping = False
        self._ephemeral = True
        self._trouble: dict[str, str] = {}
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="joining", daemon=True)
        self._thread.start()

    def use(self, issuer: Issuer | None) -> None:
        """Issue by this from now on; None issues nothing."""
        self._issuer = issuer

    def follow(self, settings: Settings, trust: Trust, port: int) -> None:
        """Issue by a configuration that comes into force; ``port`` is the bound one. Raises ``CertificateError``."""
        if trust.join is None:
            self._state = f"off: {trust.join_off}"
            self.use(None)
            return
        signer = None
        if settings.join_signer:
            authorities = [] if trust.ca_pem is None else keys.parse_certificates(trust.ca_pem, "of clients")
            signer = Signer(settings.join_signer, authorities)
        servers = servers_of(settings.model_copy(update={"port": port}))
        issuer = Issuer(
            store=self._store,
            authority=Authority(settings.state_dir, self._store),
            relay=Relay(servers, trust.join.server_name, trust.join.ca_pem),
            renew_grace=timedelta(seconds=settings.renew_grace),
            signer=signer,
            denied=self._denied,
        )
        self._state = "on"
        self.use(issuer)

    def request(self, event: Event.JoinRequest) -> None:
        """Take a request of the engine; its answer follows as a command."""
        address = Address.of(event.remote)
        if self._waiting >= WAITING:
            self._answer(event, address, failed("unknown", "busy", BUSY, ""))
            return
        self._waiting += 1
        self._queue.put(_Request(event, address, time.monotonic() + PATIENCE))

    def describe(self) -> tuple[str, tuple[str, ...]]:
        """Whether one can join, ``on`` or why not, and sentences about why certificates cannot be issued now."""
        return self._state, tuple(self._trouble.values())

    async def run(self) -> None:
        """Look at the identities until cancelled."""
        while True:
            self._log.tick()
            if self._issuer is not None and not self._sweeping:
                self._sweeping = True
                live = self._connected() if self._ephemeral else frozenset()
                self._queue.put(_Sweep(live, time.monotonic() - self._begin >= GRACE))
            await asyncio.sleep(SWEEP)

    def stop(self) -> None:
        """Answer nothing more, and end the thread; a running signer is killed."""
        self._queue.put(None)
        self.use(None)
        busy = self._busy
        if busy is not None:
            busy.stop()
        self._log.stop()

    # On the loop

    def _done(self, item: _Request | _Sweep, result: Outcome | _Swept) -> None:
        if isinstance(item, _Request) and isinstance(result, Outcome):
            self._waiting -= 1
            self._answer(item.event, item.address, result)
        elif isinstance(result, _Swept):
            self._sweeping = False
            self._swept(result)

    def _answer(self, event: Event.JoinRequest, address: Address, outcome: Outcome) -> None:
        self._submit(Command.JoinReply(event.request, outcome.data, outcome.guess))
        self.totals.count(outcome.request, outcome.result)
        issued = outcome.result == "issued"
        self._note("signer", outcome.trouble if outcome.result == "signer" else "", over=issued)
        self._note("store", outcome.trouble if outcome.result == "unavailable" else "", over=issued)
        self._log.outcome(outcome, address)
        if outcome.ended:
            self.totals.ended["left"] += 1
            self._revoke([item.fingerprint for item in outcome.ended])

    def _swept(self, swept: _Swept) -> None:
        self._note("store", swept.trouble, over=True)
        if swept.trouble:
            self._log.trouble(swept.trouble)
        self._ephemeral = swept.ephemeral or bool(swept.trouble)
        if swept.identities is not None:
            self.totals.identities = dict(swept.identities)
        for holder in {item.identity: item for item in swept.ended}.values():
            self.totals.ended["ephemeral"] += 1
            self._log.ended(holder, "ephemeral")
        if swept.ended:
            self._revoke([item.fingerprint for item in swept.ended])

    def _note(self, what: str, trouble: str, *, over: bool) -> None:
        """Remember a trouble; without one, whether the last is ``over``."""
        if trouble:
            self._trouble[what] = trouble
        elif over:
            self._trouble.pop(what, None)

    # On the thread

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            result = self._handle(item) if isinstance(item, _Request) else self._look(item)
            try:
                self._loop.call_soon_threadsafe(self._done, item, result)
            except RuntimeError:
                return  # the loop has ended

    def _handle(self, item: _Request) -> Outcome:
        event, issuer = item.event, self._issuer
        if issuer is None:
            return failed("unknown", "off", OFF, "")
        if time.monotonic() >= item.until:
            return failed("unknown", "busy", BUSY, "")
        self._busy = issuer
        try:
            return issuer.answer(event.data, event.certificate, item.address.host, self._now())
        except Exception as error:
            _log.error("A request to join failed", exc_info=error)
            return failed("unknown", "unavailable", UNAVAILABLE, f"{type(error).__name__}; the log has the traceback")
        finally:
            self._busy = None

    def _look(self, item: _Sweep) -> _Swept:
        issuer = self._issuer
        if issuer is None:
            return _Swept()
        try:
            return _Swept(*issuer.sweep(item.live, self._now(), may_end=item.may_end))
        except CertificateError as error:
            return _Swept(trouble=str(error))
        except Exception as error:
            _log.error("A look at the identities failed", exc_info=error)
            return _Swept(trouble=f"{type(error).__name__}; the log has the traceback")

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC).replace(microsecond=0)
