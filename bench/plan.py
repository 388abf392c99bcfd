"""How a benchmark is to be run, and the server it runs against."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import certificates
from bench.certificates import Certificates
from bench.processes import Server, serving

_UNLIMITED = {
    "handshakes-per-source": 1_000_000,
    "handshake-burst-per-source": 1_000_000,
    "max-half-open": 4096,
    "connections-per-source": 1_000_000,
    "connections-per-identity": 1_000_000,
}
"""All clients of a run share one source address, which the default limits exist to hold back."""


@dataclass(slots=True)
class Plan:
    """What to run, how often and how long."""

    server: Sequence[str]
    generator: Path
    repetitions: int
    seconds: int
    quick: bool
    profiles: dict[str, list[str]] = field(default_factory=dict)
    """Filled by measurements that fall short of a CPU target."""

    @contextmanager
    def serve(self, *, identities: int = 1, **settings: object) -> Iterator[tuple[Server, Certificates]]:
        """A fresh server with fresh certificates and an empty state directory."""
        with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name:
            directory = Path(name)
            files = certificates.make(directory, identities=identities)
            given: dict[str, object] = {"cert": files.server_cert, "key": files.server_key, "ca-cert": files.ca}
            given |= {key.replace("_", "-"): value for key, value in settings.items()}
            with serving(self.server, directory, {**_UNLIMITED, **given}) as server:
                yield server, files
