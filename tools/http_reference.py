"""The page of HTTP: paths, methods and statuses from the routes of the application, keys of the answers by their names.

Unit tests compare the keys with those of real answers.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any, cast

from fastapi.routing import APIRoute

from intermediate_server.admin import create_app

HEADER = """\
# HTTP

Made from the routes of the program by `tools/reference.py`.

## The relay

The admin address (`metrics-bind` and `metrics-port`, by default 127.0.0.1:9090) speaks HTTP/1.1 without TLS. A request
must be for an IP address, for `localhost` or for a name in `admin-hosts`, such as the one a scraper or a balancer uses;
others get 421. Without that, a page in a browser on the same host could read `/status` under a name of its own that
leads to 127.0.0.1 (DNS rebinding). Another path gets 404, another method 405, and a request beyond 256 at once 503.

The two POSTs are actions: they serve programs of the same host alone, and take the token of
[access.md](access.md#reload) as `Authorization: Bearer`.
"""

CLIENTS = """\
## Agents and connectors

An agent or connector with `--metrics-port` answers at `--metrics-bind`, by default 127.0.0.1, and needs none of the
packages of a relay for it. A request must be for an IP address, for `localhost` or for a name in `metrics-hosts`, as
the name of a container; others get 421. Another path gets 404, another method than GET and HEAD 405, and a connection
beyond 16 at once is closed.

### GET /healthz

Whether the relay is connected and answers: for readiness, since a restart does not bring a relay back.

- `200`: `ok`
- `503`: `not connected to the relay`

### GET /metrics

All metrics, which [metrics.md](metrics.md#agents-and-connectors) lists.

- `200`: the Prometheus text format 0.0.4
"""

STATUS = {
    "ready": "Whether new clients are welcome.",
    "accepting": "Whether the relay listens.",
    "draining": "Whether it has been told to end.",
    "addresses": "Where it listens, a list.",
    "external_ip": "The setting `external-ip`; null without it.",
    "client_auth": "The setting `client-auth`.",
    "policy": "The policy in force.",
    "joining": "`on`, or why nobody can join.",
    "anonymous_clients": "Clients without a certificate that have a registration.",
    "warnings": "Sentences about what is amiss, a list.",
    "half_open": "Handshakes under way.",
    "certificate_expires": "The end of the relay's certificate, ISO 8601.",
    "crl_next_update": "When a revocation list should be replaced, ISO 8601; null without one.",
    "reloads": "Reloads applied since the start.",
    "reload_error": "Why the last reload was refused; null when it was applied.",
}
CLIENT = {
    "conn": "The number of the connection, as in the log.",
    "address": "The public address.",
    "since": "When it was admitted, ISO 8601.",
    "identity": "`fingerprint`, `subject`, the first 16 `names`, and `name_count`; null without a certificate.",
    "certificate_ends": "The day on which its certificate ends; null without one.",
    "registrations": "A list of `role`, `service` and `rule`.",
}
RELOAD = {
    "reloaded": "Whether it was applied.",
    "error": "Why it was refused; null when it was applied.",
    "changed": "Settings that changed and are in force, a list.",
    "needs_restart": "Settings that changed and wait for a restart, a list.",
    "revoked": "Registrations that ended.",
    "closed": "Connections that were closed for their certificates.",
}
RECORD = {
    "began": "When the offer came, Unix time.",
    "session": "The agent's number of the session, as text.",
    "service": "The service.",
    "agent": "One side: `identity`, `kind`, observed `address`, `candidates` by what became of them, and its `report`.",
    "connector": "The other side; null where none was asked.",
    "answered_ms": "From the offer to the connector's answer.",
    "started_ms": "From the offer to StartPunching.",
    "ended_ms": "From the offer to the end.",
    "working_address": "The address that was reported to work.",
    "working_kind": "The kind of its candidate.",
    "outcome": "`direct`, `failed`, `unreported`, `unanswered` or `refused`.",
    "reason": "One of [direct.md](direct.md#what-there-is-to-see).",
    "sentence": "The reason in words.",
}
KEYS = {
    "/readyz": ("", STATUS),
    "/status": ("The keys of `/readyz`, and `clients`: their `total`, and of the first 1,000 under `clients`:", CLIENT),
    "/anonymous": ("The same as `clients` of `/status`.", {}),
    "/direct": ("`open`: sessions by state. `ended`: the last 1,000, of each:", RECORD),
    "/reload": ("", RELOAD),
}
"""What the JSON of a path has, by path."""


def render_http() -> str:
    """docs/http.md."""
    parts = [HEADER]
    for route in routes():
        (method,) = (route.methods or set()) - {"HEAD"}
        parts.append(f"### {method} {route.path.replace('{conn}', 'CONN')}\n")
        parts.append(f"{inspect.cleandoc(route.description)}\n")
        parts.append("".join(f"- `{status}`: {text['description']}\n" for status, text in route.responses.items()))
        text, keys = KEYS.get(route.path, ("", {}))
        if text:
            parts.append(f"{text}\n")
        if keys:
            rows = [f"| `{key}` | {meaning} |" for key, meaning in keys.items()]
            parts.append("\n".join(["| key | |", "|---|---|", *rows]) + "\n")
    return "\n".join([*parts, CLIENTS])


def routes() -> list[APIRoute]:
    """The routes of an application that has all of them."""
    operations = cast("Any", SimpleNamespace(hosts=(), token="t", state=None))  # noqa: S106
    return [route for route in create_app(operations).routes if isinstance(route, APIRoute)]
