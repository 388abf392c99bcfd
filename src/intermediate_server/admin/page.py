"""The status page: ``/status`` for people. One HTML document that refreshes itself, without scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from intermediate_server.logs import printable, short_connection

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Peers choose much of the text, so with a forgotten escape nothing may run."""

REFRESH = 5
"""Seconds between two refreshes."""

SHOWN = ("client_auth", "policy", "addresses", "external_ip", "certificate_expires", "crl_next_update", "reload_error")

_STYLE = (
    "body{font:14px system-ui;margin:2em}table{border-collapse:collapse;margin:1em 0}"
    "td,th{border:1px solid;padding:.2em .6em;text-align:left;vertical-align:top}.warning{font-weight:bold}"
)


def render(status: Mapping[str, Any]) -> str:
    """The body of ``/status`` as HTML."""
    clients = status["clients"]
    state = "draining" if status["draining"] else "ready" if status["ready"] else "not ready"
    listed = "" if len(clients["clients"]) == clients["total"] else f", the oldest {len(clients['clients'])} are shown"
    return "".join(
        (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="refresh" content="{REFRESH}">',
            f"<title>intermediate-server: {state}</title><style>{_STYLE}</style></head><body>",
            f"<h1>intermediate-server: {state}</h1>",
            *(f'<p class="warning">{_text(warning)}</p>' for warning in status["warnings"]),
            _table((), ((name.replace("_", " "), _plain(status[name])) for name in SHOWN)),
            f"<h2>Connections: {clients['total']}{listed}</h2>",
            f"<p>Without a certificate: {status['anonymous_clients']}</p>",
            _table(
                ("connection", "address", "since", "who", "registrations", "certificate ends"),
                (
                    (
                        short_connection(client["conn"]),
                        client["address"],
                        client["since"],
                        _who(client["identity"]),
                        _registrations(client),
                        client["certificate_ends"] or "",
                    )
                    for client in clients["clients"]
                ),
            ),
            "<h2>Services</h2>",
            _table(("service", "agents", "connectors"), _services(clients["clients"])),
            "</body></html>\n",
        )
    )


def _services(clients: Iterable[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    registrations = Counter((item["service"], item["role"]) for client in clients for item in client["registrations"])
    names = sorted({service for service, _ in registrations})
    return [(service, registrations[service, "agent"], registrations[service, "connector"]) for service in names]


def _who(identity: Mapping[str, Any] | None) -> str:
    if identity is None:
        return "anonymous"
    names = ", ".join(identity["names"])
    return f"{identity['subject'] or 'no subject'} ({names or 'no names'}), sha256 {identity['fingerprint']}"


def _registrations(client: Mapping[str, Any]) -> str:
    told = (f"{item['role']} of {item['service']} by {item['rule'] or 'no rule'}" for item in client["registrations"])
    return ", ".join(told) or "none"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    titles = "".join(f"<th>{_text(title)}</th>" for title in head)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{titles}</tr>' if titles else ''}{body}</table>"


def _text(value: Any) -> str:
    return escape(printable(str(value)))
