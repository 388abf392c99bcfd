"""``issued.json``: the index of issued certificates that versions before ``identity.db`` kept, to be taken over."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from intermediate_server.errors import CertificateError
from intermediate_server.pki import files
from intermediate_server.pki.names import role_of
from intermediate_server.types import Role

INDEX = "issued.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One certificate of the old index."""

    name: str
    role: Role | Literal["server"]
    services: tuple[str, ...]
    serial: str
    """Hexadecimal, lower-case."""
    fingerprint: bytes
    """SHA-256 of the certificate, 32 bytes."""
    not_before: datetime
    not_after: datetime
    """Validity, aware UTC."""
    revoked_at: datetime | None


def read(state_dir: Path) -> list[Entry]:
    """All entries, oldest first; none without the file. Raises ``CertificateError``."""
    path = state_dir / INDEX
    try:
        data = json.loads(files.read_file(path, "index"))
        return [_entry(item) for item in data["issued"]]
    except CertificateError:
        if not path.exists():
            return []
        raise
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CertificateError(f"index {path} is damaged; restore it from a copy, or move it away") from None


def _entry(item: dict[str, Any]) -> Entry:
    fingerprint = bytes.fromhex(item["fingerprint"])
    if len(fingerprint) != 32:
        raise ValueError("not a SHA-256")
    revoked = item["revoked_at"]
    return Entry(
        name=str(item["name"]),
        role=role_of(item["role"]),
        services=tuple(str(service) for service in item["services"]),
        serial=f"{int(item['serial'], 16):x}",
        fingerprint=fingerprint,
        not_before=_aware(item["not_before"]),
        not_after=_aware(item["not_after"]),
        revoked_at=None if revoked is None else _aware(revoked),
    )


def _aware(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without zone")
    return moment
