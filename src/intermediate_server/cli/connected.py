"""The clients of a running server, asked for at its admin address."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

from intermediate_server.config import Settings
from intermediate_server.errors import CertificateError
from intermediate_server.join.relay import noted

PATIENCE = 5.0
"""Seconds for the server to answer."""
MAX_BYTES = 256 << 20


def admin_connection(settings: Settings) -> http.client.HTTPConnection:
    """The way to the admin address of the server with these settings; nothing is sent yet."""
    host = "127.0.0.1" if settings.metrics_bind.is_unspecified else str(settings.metrics_bind)
    return http.client.HTTPConnection(host, settings.metrics_port, timeout=PATIENCE)


def connected(state_dir: Path, name: str) -> str | None:
    """The fingerprint of the connected certificate with this common name; None without one, or without a server.

    Raises ``CertificateError`` where several have it.
    """
    settings = noted(state_dir)
    if settings is None or settings.metrics_port == 0:
        return None
    connection = admin_connection(settings)
    try:
        connection.request("GET", "/status", headers={"Accept": "application/json"})
        clients = json.loads(connection.getresponse().read(MAX_BYTES))["clients"]["clients"]
        found = {
            identity["fingerprint"]: identity["subject"]
            for client in clients
            if (identity := client["identity"]) is not None and f"CN={name}" in identity["subject"].split(",")
        }
    except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError):
        return None
    finally:
        connection.close()
    if len(found) > 1:
        listed = "".join(f"\n  {fingerprint}  {subject!a}" for fingerprint, subject in found.items())
        raise CertificateError(f"{len(found)} certificates with this name are connected; give a fingerprint:{listed}")
    return next(iter(found), None)
