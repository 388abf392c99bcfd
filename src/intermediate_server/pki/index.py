"""The index of issued certificates: a JSON file in the state directory, replaced whole on each change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from intermediate_server.errors import CertificateError
from intermediate_server.pki import files
from intermediate_server.types import Role

INDEX = "issued.json"
SERVER: Final = "server"
"""In place of a role: the holder is a relay."""


@dataclass(frozen=True, slots=True)
class Issued:
    """One issued certificate."""

    name: str
    role: Role | Literal["server"]
    services: tuple[str, ...]
    """Lower-case service names, or ``*``."""
    serial: str
    """Hexadecimal, lower-case."""
    fingerprint: str
    """SHA-256 of the certificate, lower-case hex."""
    not_before: datetime
    not_after: datetime
    """Validity, aware UTC."""
    revoked_at: datetime | None
    """The moment of its revocation, aware UTC; None while it is valid."""

    @property
    def holder(self) -> str:
        """The role as a word."""
        return self.role if self.role == SERVER else self.role.value

    def is_live(self, now: datetime) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and now < self.not_after


def read(state_dir: Path) -> list[Issued]:
    """All issued certificates, oldest first; none without an index. Raises ``CertificateError``."""
    path = state_dir / INDEX
    if not path.exists():
        return []
    try:
        data = json.loads(files.read_file(path, "index"))
        return [_from_json(item) for item in data["issued"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CertificateError(f"index {path} is damaged; restore it from a copy, or move it away") from None


def write(state_dir: Path, issued: Sequence[Issued]) -> None:
    """Replace the index; the caller holds the directory's lock. Raises ``CertificateError``."""
    data = {"version": 1, "issued": [_to_json(item) for item in issued]}
    files.write_file(state_dir / INDEX, json.dumps(data, indent=1).encode() + b"\n", private=True)


def _to_json(item: Issued) -> dict[str, Any]:
    return {
        "name": item.name,
        "role": item.holder,
        "services": list(item.services),
        "serial": item.serial,
        "fingerprint": item.fingerprint,
        "not_before": item.not_before.isoformat(),
        "not_after": item.not_after.isoformat(),
        "revoked_at": item.revoked_at.isoformat() if item.revoked_at else None,
    }


def _from_json(item: dict[str, Any]) -> Issued:
    int(item["serial"], 16)
    revoked = item["revoked_at"]
    return Issued(
        name=str(item["name"]),
        role=SERVER if item["role"] == SERVER else Role(item["role"]),
        services=tuple(str(service) for service in item["services"]),
        serial=item["serial"],
        fingerprint=str(item["fingerprint"]),
        not_before=_aware(item["not_before"]),
        not_after=_aware(item["not_after"]),
        revoked_at=None if revoked is None else _aware(revoked),
    )


def _aware(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without zone")
    return moment
