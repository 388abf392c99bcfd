"""Hosts that each have a NAT of their own between them and the internet, in which the relay is.

::

    host 192.168.1.2 -- 192.168.1.1 NAT 198.51.100.N+1 -- 198.51.100.N internet, relay (10.9.0.1)

All networks at home have the same addresses. A host without a NAT is 198.51.100.N+1 itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.field import RELAY_V4, Stage
from tests.e2e.netns import Host, Nat, Network
from tests.integration.peers import Profile
from tests.integration.signaling_peer import SignalingPeer

INSIDE, GATEWAY = "192.168.1.2", "192.168.1.1"


@dataclass(frozen=True, slots=True)
class Home:
    """A host, and the NAT before it."""

    host: Host
    router: Host
    """The host itself where there is no NAT."""
    address: str
    """Where it is seen."""


class Internet(Stage):
    """The relay, and the homes around it."""

    def __init__(self, network: Network, running: AsyncExitStack, directory: Path) -> None:
        super().__init__(network, running, directory)
        self._blocks = itertools.count(step=4)
        self.middle.forward()
        self.middle.ip(f"addr add {RELAY_V4}/32 dev lo")

    def home(self, kind: Nat) -> Home:
        """A new home behind a NAT of this kind."""
        block = next(self._blocks)
        near, far = (f"198.51.100.{block + place}" for place in (1, 2))
        router = self.network.host()
        outside = self.network.link(self.middle, router, [(f"{near}/30", f"{far}/30")])
        router.route("default", near)
        if kind is Nat.PUBLIC:
            return Home(router, router, far)
        host = self.network.host()
        self.network.link(router, host, [(f"{GATEWAY}/24", f"{INSIDE}/24")])
        host.route("default", GATEWAY)
        router.forward()
        router.nat(kind, outside, far, INSIDE)
        return Home(host, router, far)

    def separate(self, first: Home, second: Home) -> None:
        """Let nothing pass between two homes."""
        ends = f"{{ {first.address}, {second.address} }}"
        self.middle.nft(
            "add table ip apart; add chain ip apart between { type filter hook forward priority 0; };"
            f"add rule ip apart between ip saddr {ends} ip daddr {ends} drop"
        )

    async def peer(self, home: Home, program: Path, profile: Profile, flags: Sequence[str] = ()) -> SignalingPeer:
        """A connected peer that the relay has told where it is seen."""
        words = (*home.host.within, str(program))
        starting = SignalingPeer.start(words, profile, self.relay.address, ca_file=self.relay.ca_file, flags=flags)
        peer = await self.running.enter_async_context(starting)
        await peer.connected()
        assert (await peer.observed())[0] == home.address
        return peer
