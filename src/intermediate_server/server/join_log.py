"""Log lines and audit records of joins, renewals and ends of identities, bounded because anybody may ask."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable

import structlog

from intermediate_server.audit import Audit
from intermediate_server.join.issuer import Outcome
from intermediate_server.pki.store import Issued
from intermediate_server.types import Address, ConnectionId, Peer, Role

LINES = 9
"""Lines about refusals in a minute; one more tells how many had none."""
MINUTE = 60.0

_SENTENCES = {
    ("join", "issued"): "Joined",
    ("join", "repeated"): "Joined again by the same key",
    ("join", "pending"): "Join waits for approval; run: intermediate-server token pending",
    ("renew", "issued"): "Renewed",
    ("renew", "repeated"): "Gave a renewed certificate again",
    ("late-renew", "issued"): "Renewed late: the certificate had expired",
    ("late-renew", "repeated"): "Gave a renewed certificate again",
    ("leave", "left"): "Left",
}

_log = structlog.get_logger()


class JoinLog:
    """Writes outcomes of the issuer into both logs."""

    def __init__(
        self,
        audit: Audit,
        may_write: Callable[[str, Peer | None], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``may_write`` takes a line of a kind for the source of a peer, if there is one left."""
        self._audit = audit
        self._may_write = may_write
        self._clock = clock
        self._lines: deque[float] = deque(maxlen=LINES)
        """When the last lines about refusals were written."""
        self._unwritten: Counter[str] = Counter()
        """Refusals without a line, by cause."""
        self._told = -MINUTE
        """When their number was last written."""
        self._pending: deque[str] = deque(maxlen=1024)
        """Joins whose wait has had its line; they ask again every 10 s."""
        self._trouble: tuple[str, float] | None = None

    def outcome(self, outcome: Outcome, address: Address) -> None:
        """Write an answer down."""
        refused = bool(outcome.reason)
        if outcome.trouble:
            self.trouble(outcome.trouble)
        if outcome.result == "pending":
            key = f"{outcome.token} {address.source}"
            if key in self._pending:
                return
            self._pending.append(key)
        decision = "refused" if refused else outcome.result
        if self._may_write(decision, Peer(ConnectionId(0), address, None)):
            self._record(decision, outcome, address)
        if refused:
            self._refusal(outcome, address)
        else:
            text = _SENTENCES[outcome.request, outcome.result]
            _log.info(text, address=str(address), **_described(outcome))

    def ended(self, identity: Issued, cause: str) -> None:
        """Write the end of an identity by the relay itself down."""
        named = {"name": identity.name, "fingerprint": identity.fingerprint}
        self._audit.record("ended", None, cause=cause, details=named)
        _log.info(f"Identity {identity.name} ended: it was not connected for too long", identity=identity.fingerprint)

    def trouble(self, sentence: str) -> None:
        """Write a fault of the relay down, at most once a minute while it stays the same."""
        now = self._clock()
        if self._trouble is None or self._trouble[0] != sentence or now - self._trouble[1] >= MINUTE:
            self._trouble = (sentence, now)
            _log.error("No certificates can be issued; relaying goes on", reason=sentence)

    def tick(self) -> None:
        """Write how many refusals had no line, at most once a minute."""
        now = self._clock()
        if self._unwritten and now - self._told >= MINUTE:
            self._told = now
            counts, self._unwritten = self._unwritten, Counter()
            _log.warning("More joins and renewals refused", count=counts.total(), **counts)

    def stop(self) -> None:
        """Write what is left."""
        self._told = -MINUTE
        self.tick()

    def _record(self, decision: str, outcome: Outcome, address: Address) -> None:
        role = None if outcome.holder is None or not isinstance(outcome.holder.role, Role) else outcome.holder.role
        details = {"request": outcome.request, "token": outcome.token or None}
        if outcome.holder is not None:
            details |= {"name": outcome.holder.name, "fingerprint": outcome.holder.fingerprint}
        cause = outcome.result if outcome.reason else outcome.request
        self._audit.record(decision, address, cause=cause, role=role, reason=outcome.reason, details=details)

    def _refusal(self, outcome: Outcome, address: Address) -> None:
        now = self._clock()
        if len(self._lines) == LINES and now - self._lines[0] < MINUTE:
            self._unwritten[outcome.result] += 1
            return
        self._lines.append(now)
        what = "request to join" if outcome.request == "unknown" else outcome.request
        _log.warning(
            f"Refused a {what} from {address}", cause=outcome.result, reason=outcome.reason, **_described(outcome)
        )


def _described(outcome: Outcome) -> dict[str, str]:
    found = {}
    if outcome.token:
        found["token"] = outcome.token
    if outcome.holder is not None:
        found |= {
            "name": outcome.holder.name,
            "role": outcome.holder.holder,
            "services": ",".join(outcome.holder.services),
            "identity": outcome.holder.fingerprint,
        }
    return found
