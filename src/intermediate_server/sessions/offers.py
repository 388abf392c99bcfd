"""Offers that wait for their turn, shared fairly by those who make them."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import NamedTuple

from intermediate_server.types import ConnectionId

WAITING = 400
"""Offers that wait at the most."""

WAITING_EACH = 8
"""Of them those of one connection: it may have no more open sessions."""


class Offer(NamedTuple):
    """An offer that has not been looked at."""

    conn: ConnectionId
    owner: str
    """The identity or source of its connection."""
    session: int
    payload: bytes
    held: bool = False
    """Whether it has waited for a registration already."""


class Offers:
    """Takes offers in the order in which they came of each owner, and the owners in turn."""

    def __init__(self) -> None:
        self._by_owner: OrderedDict[str, deque[Offer]] = OrderedDict()
        """The owner whose turn it is comes first; each has an offer at least."""
        self._by_conn: Counter[int] = Counter()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, offer: Offer) -> Offer | None:
        """Add an offer. Where too many wait, the result has to be refused for it: the newest of the owner that has
        most, or the offer itself where its own would have as many."""
        if self._by_conn[offer.conn] >= WAITING_EACH:
            return offer
        refused = None
        if self._count >= WAITING:
            most = max(self._by_owner, key=lambda owner: len(self._by_owner[owner]))
            if len(self._by_owner.get(offer.owner, ())) + 1 >= len(self._by_owner[most]):
                return offer
            refused = self._remove(most, newest=True)
        self._by_owner.setdefault(offer.owner, deque()).append(offer)
        self._by_conn[offer.conn] += 1
        self._count += 1
        return refused

    def take(self) -> Offer | None:
        """Take the oldest offer of the owner whose turn it is; None when none waits."""
        if not self._by_owner:
            return None
        owner = next(iter(self._by_owner))
        offer = self._remove(owner, newest=False)
        if owner in self._by_owner:
            self._by_owner.move_to_end(owner)
        return offer

    def _remove(self, owner: str, *, newest: bool) -> Offer:
        queue = self._by_owner[owner]
        offer = queue.pop() if newest else queue.popleft()
        if not queue:
            del self._by_owner[owner]
        self._by_conn[offer.conn] -= 1
        if not self._by_conn[offer.conn]:
            del self._by_conn[offer.conn]
        self._count -= 1
        return offer
