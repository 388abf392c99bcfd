"""Regions: a connector of the home region is used before all others, which take over when it goes.

Connectors have names such as ``connector.web.ztna`` as always, and one more of the form ``eu-west.region.example``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from intermediate_server.policy import Candidate, CertificatePolicy
from intermediate_server.types import Peer

FAR = 1000


class RegionPolicy(CertificatePolicy):
    """The certificate's names grant; the region ranks."""

    def __init__(self) -> None:
        super().__init__(anonymous=False)
        self._home = os.environ.get("HOME_REGION", "eu-west") + ".region.example"

    def select(self, service: str, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        return [each if self._is_home(each.peer) else replace(each, rank=each.rank + FAR) for each in candidates]

    def _is_home(self, peer: Peer) -> bool:
        return peer.identity is not None and self._home in peer.identity.dns_names
