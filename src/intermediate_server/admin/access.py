"""Access to HTTP: each request needs a known Host, and an action also the token.

A proxy on this host makes every request look like one from this host: so an action also takes a token, which is
readable in the state directory alone.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Collection
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from intermediate_server import known_hosts
from intermediate_server.errors import CertificateError
from intermediate_server.pki import files

TOKEN = "admin.token"  # noqa: S105 - a file's name
"""In the state directory, mode 0600."""

BROUGHT = ("origin", "sec-fetch-site", "forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
"""Headers of requests that a page or a proxy has brought here."""


class KnownHosts:
    """Answers only requests for an IP address, ``localhost`` or one of ``names``; others get 421 (RFC 9110 15.5.20).

    A request without Host comes from a program, since browsers always send it.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] = ()) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and not all(
            known_hosts.is_known(host, self._names) for host in Headers(scope=scope).getlist("host")
        ):
            app = PlainTextResponse(
                "this server is asked by its IP address or as localhost; name others in admin-hosts\n", status_code=421
            )
        await app(scope, receive, send)


def ensure_token(state_dir: Path) -> str:
    """The token of an action, made if missing. Raises ``CertificateError``."""
    path = state_dir / TOKEN
    with files.locked(state_dir):
        if not path.exists():
            files.write_file(path, f"{secrets.token_urlsafe(32)}\n".encode(), private=True)
        token = files.read_private_file(path, "token file").decode(errors="replace").strip()
    if len(token) < 32 or not token.isascii() or not token.isprintable():
        raise CertificateError(f"token file {path} is damaged; remove it, a new one is made")
    return token


def action_problem(request: Request, token: str, action: str, *, otherwise: str = "") -> str | None:
    """The reason to refuse an action such as ``a reload``, as a sentence; None when the request may have it.

    ``otherwise`` ends the sentence with another way to the same.
    """
    if not _from_this_host(request) or any(name in request.headers for name in BROUGHT):
        return f"{action} can only be asked for on this host, and not through a proxy or a page"
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        return f"{action} takes the token in {TOKEN} of the state directory, as Authorization: Bearer{otherwise}"
    return None


def _from_this_host(request: Request) -> bool:
    if request.client is None:
        return False
    address = ip_address(request.client.host)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
