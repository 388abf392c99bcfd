"""The status of a running agent or connector, over a Unix socket of its user."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import structlog

from intermediate_server.client.lifetime import ends
from intermediate_server.client.relay import Relay
from intermediate_server.client.state import RegistrationState
from intermediate_server.client.supervisor import Supervisor
from intermediate_server.client.tunnel import Tunnel
from intermediate_server.errors import CertificateError, ConnectError, ConnectionClosed

ANSWER_TIMEOUT = 5.0
MAX_ANSWER = 1 << 20
RUN = Path("/run")
"""The runtime directory of root."""

_log = structlog.get_logger()


def default_socket(role: str) -> Path:
    """The default path of the status socket: in the user's runtime directory, or in ``/run`` for root."""
    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given) / f"{role}.sock"
    if os.geteuid() == 0:
        return RUN / "intermediate-server" / f"{role}.sock"
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/intermediate-server-{os.geteuid()}"  # noqa: S108  checked
    return Path(runtime) / "intermediate-server" / f"{role}.sock"


def socket_to_ask(role: str) -> Path:
    """The socket of the one that runs: its variable names it, and root finds that of the systemd unit too."""
    named = os.environ.get(f"ZTNA_{role.upper()}_STATUS_SOCKET")
    if named:
        return Path(named).expanduser()
    of_unit = RUN / f"intermediate-server-{role}" / f"{role}.sock"
    usual = default_socket(role)
    return of_unit if os.geteuid() == 0 and not usual.exists() and of_unit.exists() else usual


async def report(role: str, relay: Relay, supervisor: Supervisor, tunnel: Tunnel | None) -> dict[str, Any]:
    """The state of a supervisor and its tunnel now, as plain data."""
    state = supervisor.state
    data: dict[str, Any] = {
        "role": role,
        "server": relay.server,
        "connected": state.connection is not None,
        "silent": state.silent,
        "connects": state.connects,
        "services": {name: _registration(name, registration, tunnel) for name, registration in state.services.items()},
        "last_error": state.last_error,
    }
    if relay.identity_file is not None:
        with suppress(CertificateError):
            data["certificate_ends"] = ends(relay.identity_file).date().isoformat()
    connection = state.connection
    if connection is not None:
        data["relay_address"] = str(connection.remote)
        data["observed_address"] = _text(connection.observed_address)
        data["observed_address_frame"] = _text(connection.observed_address_frame)
        with suppress(ConnectionClosed):
            now = await connection.inspect()
            data |= {
                "rtt_ms": round(now.rtt_us / 1000, 3),
                "mtu": now.mtu,
                "max_datagram": now.max_datagram,
                "sent_packets": now.sent_packets,
                "lost_packets": now.lost_packets,
                "received_bytes": now.totals.received_bytes,
                "sent_bytes": now.totals.sent_bytes,
            }
    if tunnel is not None:
        wrong = [f"{service}: {address} {error}" for (service, address), error in tunnel.backends.items() if error]
        if wrong:
            data["backend_errors"] = wrong
        data["local"] = [str(address) for address in tunnel.addresses]
        data["tunnel"] = tunnel.counters()
    return data


def _registration(service: str, registration: RegistrationState, tunnel: Tunnel | None) -> str:
    """The state of a service at the relay, and the fault behind it."""
    if registration is not RegistrationState.REGISTERED or tunnel is None:
        return registration.value
    if tunnel.connectors.get(service) is False:
        return f"{registration.value}, no connector"
    errors = [error for (name, _), error in tunnel.backends.items() if name == service]
    return f"{registration.value}, backend down" if errors and all(errors) else registration.value


@asynccontextmanager
async def serving(
    path: Path, answer: Callable[[], Awaitable[dict[str, Any]]], *, needed: bool = True
) -> AsyncIterator[None]:
    """Answer each connection to ``path``, which only its owner can open, with one JSON object.

    Raises ``ConnectError`` when the socket cannot be made; unless it is ``needed``, that is only a warning, on a
    read-only file system for instance.
    """

    async def respond(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(ANSWER_TIMEOUT):
                writer.write(json.dumps(await answer()).encode() + b"\n")
                await writer.drain()
        writer.close()

    server: asyncio.AbstractServer | None = None
    try:
        _prepare(path)
        await _refuse_second(path)
        path.unlink(missing_ok=True)  # noqa: ASYNC240  a directory entry
        mask = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(respond, path)
        finally:
            os.umask(mask)
    except OSError as error:
        text = f"cannot open the status socket {path}: {error.strerror or error}; name another with --status-socket"
        if needed:
            raise ConnectError(text) from error
        _log.warning("The status command will find nothing", reason=text)
    try:
        yield
    finally:
        if server is not None:
            server.close()
            path.unlink(missing_ok=True)  # noqa: ASYNC240


async def ask(path: Path) -> dict[str, Any]:
    """The status of the agent or connector behind ``path``. Raises ``ConnectError``."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            reader, writer = await asyncio.open_unix_connection(path, limit=MAX_ANSWER)
            try:
                line = await reader.readline()
            finally:
                writer.close()
        answer = json.loads(line)
    except FileNotFoundError:
        raise ConnectError(f"nothing runs at {path}; name its socket with --status-socket") from None
    except (OSError, TimeoutError, ValueError) as error:
        raise ConnectError(f"no answer at {path}: {str(error) or 'it took too long'}") from error
    if not isinstance(answer, dict):
        raise ConnectError(f"no answer at {path}: it is not a status")
    return answer


def _prepare(path: Path) -> None:
    """Make the directory. In a place writable by others it must be ours, and only a socket is replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.parent.stat()
    if found.st_uid not in (0, os.geteuid()) or (found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX):
        raise ConnectError(f"{path.parent} belongs to somebody else; name another place with --status-socket")
    if path.exists() and not path.is_socket():
        raise ConnectError(f"{path} exists and is no socket; name another with --status-socket")


async def _refuse_second(path: Path) -> None:
    """Refuse a socket that answers; a silent one is left over from a killed process."""
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return
    writer.close()
    raise ConnectError(f"another one runs at {path}; name another socket with --status-socket")


def _text(value: object) -> str | None:
    return None if value is None else str(value)
