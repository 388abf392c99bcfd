"""``agent`` and ``connector``: from flags to a running client, and its status."""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import json
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

from intermediate_server import cli, hangup, loop, notify
from intermediate_server.cli import commands
from intermediate_server.cli.flags import client_flags, with_parameters
from intermediate_server.cli.serve import check_parameters, named_file, print_checked
from intermediate_server.config import Resolved, resolve_client
from intermediate_server.config.clients import AgentSettings, ClientSettings, ConnectorSettings
from intermediate_server.config.values import read_path
from intermediate_server.errors import ConfigError
from intermediate_server.types import Role

if TYPE_CHECKING:
    from intermediate_server.client.agent import AgentOptions
    from intermediate_server.client.connector import ConnectorOptions
    from intermediate_server.client.engine import ClientEngine
    from intermediate_server.client.state import State

_JOIN = "join"
"""The one flag of agent and connector that is no setting: settings are shown, tokens are not."""
_M_MMAP_THRESHOLD, _FLOW_BUFFER = -3, 64 << 10
_STATUS_COLUMN = 24
_SOCKET = commands.Option("--status-socket", metavar="PATH", help="The socket to ask, if not the usual one.")


class Client(Protocol):
    """An agent or a connector."""

    @property
    def state(self) -> State: ...
    async def wait_until(self, predicate: Callable[[State], bool]) -> None: ...

    def status(self) -> Awaitable[dict[str, Any]]: ...
    def renew(self) -> None: ...


C = TypeVar("C", bound=Client)


def register(app: commands.Group) -> None:
    """Add the commands of this module."""
    for name, model, run, prepare in (
        ("agent", AgentSettings, agent, prepare_agent),
        ("connector", ConnectorSettings, connector, prepare_connector),
    ):
        group = commands.running(with_parameters(run, [_join_flag(), *client_flags(model)]))
        group.command("status")(_status_command(name))
        check = with_parameters(_check_command(name, prepare), [*check_parameters(), *client_flags(model)])
        group.command("check-config")(check)
        app.add_group(group, name)


def agent(**flags: Any) -> None:
    """Reach services through the relay: local ports (--forward), or a TUN interface (--tun).

    Without either, each service of the profile gets a free local TCP port, which is printed. Each flag but --join is
    also a key of the configuration file and a variable (ZTNA_AGENT_SERVER).
    """
    _join_first(Role.AGENT, AgentSettings, flags)
    resolved, options = prepare_agent(flags)
    from intermediate_server.client.agent import Agent, running  # noqa: PLC0415  see cli/__init__.py

    def print_ports(agent: Agent) -> None:
        for spec, address in zip(options.forwards, agent.tunnel.addresses, strict=False):
            print(f"{spec.service}  {spec.protocol} {address}", flush=True)

    chosen = bool(resolved.settings.forward)
    _run("agent", resolved, lambda engine: running(options, engine=engine), begun=None if chosen else print_ports)


def prepare_agent(flags: Mapping[str, Any]) -> tuple[Resolved[AgentSettings], AgentOptions]:
    """Settings and options of an agent; reads their files. Raises ``ConfigError`` and ``CertificateError``."""
    resolved = resolve_client(AgentSettings, "agent", flags, env=os.environ)
    from intermediate_server.client.agent import AgentOptions  # noqa: PLC0415  see cli/__init__.py

    options = AgentOptions.of(resolved.settings, profile=_default(Role.AGENT, resolved.settings))
    options.all_services()
    options.relay.check()
    return resolved, options


def connector(**flags: Any) -> None:
    """Serve private applications through the relay; nothing else is ever reached.

    Each flag but --join is also a key of the configuration file and a variable (ZTNA_CONNECTOR_SERVER).
    """
    _join_first(Role.CONNECTOR, ConnectorSettings, flags)
    resolved, options = prepare_connector(flags)
    from intermediate_server.client.connector import serving  # noqa: PLC0415

    _run("connector", resolved, lambda engine: serving(options, engine=engine))


def prepare_connector(flags: Mapping[str, Any]) -> tuple[Resolved[ConnectorSettings], ConnectorOptions]:
    """Settings and options of a connector, as :func:`prepare_agent` makes an agent's."""
    resolved = resolve_client(ConnectorSettings, "connector", flags, env=os.environ)
    from intermediate_server.client.connector import ConnectorOptions  # noqa: PLC0415

    options = ConnectorOptions.of(resolved.settings, profile=_default(Role.CONNECTOR, resolved.settings))
    options.all_services()
    options.relay.check()
    return resolved, options


def _join_flag() -> inspect.Parameter:
    option = commands.Option(
        "--join",
        metavar="TOKEN|-|FILE|auto",
        help="Join by this token when there is no profile yet: the token, - for standard input, a path with a / in it, "
        "or auto for ZTNA_JOIN_TOKEN or the systemd credential join-token.",
    )
    annotation = Annotated[str | None, option]
    return inspect.Parameter(_JOIN, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _join_first(role: Role, model: type[ClientSettings], flags: dict[str, Any]) -> None:
    """Join as ``--join`` says, which leaves the flags, unless there is a profile."""
    source = flags.pop(_JOIN, None)
    if source is None:
        return
    settings = resolve_client(model, role.value, flags, env=os.environ).settings
    if settings.server is not None:
        raise ConfigError("--join makes a profile, which names its relay: leave --server and the certificates out")
    from intermediate_server.cli.join import join_unless_joined  # noqa: PLC0415

    join_unless_joined(role, settings.profile or _default(role, settings), source)


def _default(role: Role, settings: ClientSettings) -> Path | None:
    """The usual profile of a role, where the settings name neither a profile nor a relay."""
    if settings.profile is not None or settings.server is not None:
        return None
    from intermediate_server.client.profile import default_profile  # noqa: PLC0415

    return default_profile(role, os.environ)


def _status_command(role: str) -> Callable[..., None]:
    def status(
        status_socket: Annotated[str | None, _SOCKET] = None,
        as_json: Annotated[bool, commands.Option("--json", help="Print the answer as JSON.")] = False,
    ) -> None:
        from intermediate_server.client import status as statuses  # noqa: PLC0415

        try:
            path = statuses.socket_to_ask(role) if status_socket is None else read_path(status_socket)
        except ValueError as error:
            raise ConfigError(f"--status-socket: {error}") from None
        answer = loop.run(statuses.ask(path))
        if as_json:
            commands.echo(json.dumps(answer, indent=2))
        else:
            places = answer.pop("addresses", {})
            for name, value in answer.items():
                text = _services_text(value, places) if name == "services" else _status_text(value)
                commands.echo(f"{name.replace('_', ' '):<{_STATUS_COLUMN}}{text}")
        # The exit status is for health checks.
        raise commands.Exit(cli.OK if answer.get("connected") and not answer.get("silent") else cli.FAILED)

    status.__doc__ = (
        f"Print what the running {role} says: relay, observed address, services, RTT, MTU, loss, bytes. "
        "The exit status is 1 when it is not connected."
    )
    return status


def _services_text(services: dict[str, str], places: dict[str, list[str]]) -> str:
    """A line for each service: its state, and its address for local programs."""
    lines_of = {name: f"{name} {text}" for name, text in services.items()}
    width = max(map(len, lines_of.values()), default=0)
    lines = [f"{text:<{width}}  {', '.join(places.get(name, ()))}".rstrip() for name, text in lines_of.items()]
    return f"\n{'':<{_STATUS_COLUMN}}".join(lines)


def _status_text(value: object) -> str:
    """A value of the status for people: counters in order, without zeros."""
    if isinstance(value, dict):
        counted = all(isinstance(item, int) for item in value.values())
        items = sorted((key, item) for key, item in value.items() if item) if counted else list(value.items())
        return ", ".join(f"{key} {_status_text(item)}" for key, item in items) or "none"
    if isinstance(value, list):
        return ", ".join(map(_status_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in (None, "") else str(value)


def _check_command(role: str, prepare: Callable[[Mapping[str, Any]], tuple[Resolved[Any], Any]]) -> Callable[..., None]:
    def check(file: str | None = None, show: bool = False, **flags: Any) -> None:
        resolved, _ = prepare(named_file(file, flags))
        print_checked(resolved, show=show)

    check.__doc__ = f"Check the settings of an {role} and every file they name, and start nothing."
    return check


def _run(
    role: str,
    resolved: Resolved[Any],
    begin: Callable[[ClientEngine], AbstractAsyncContextManager[C]],
    *,
    begun: Callable[[C], None] | None = None,
) -> None:
    """Run until the end is asked for; ``begun`` is called with the running client."""
    from intermediate_server import logs  # noqa: PLC0415
    from intermediate_server.client import metrics  # noqa: PLC0415
    from intermediate_server.client import status as statuses  # noqa: PLC0415
    from intermediate_server.client.engine import ClientEngine  # noqa: PLC0415
    from intermediate_server.client.supervision import report_to  # noqa: PLC0415
    from intermediate_server.client.tasks import first_of  # noqa: PLC0415

    settings: ClientSettings = resolved.settings
    logs.configure(level=settings.log_level, format=settings.log_format)
    logs.log_configuration(resolved.file, resolved.warnings)
    named = settings.status_socket is not None
    path = settings.status_socket or statuses.default_socket(role)

    manager = notify.ServiceManager.from_environment()

    async def serve() -> None:
        async with (
            ClientEngine() as engine,
            begin(engine) as client,
            statuses.serving(path, client.status, needed=named),
            metrics.serving(str(settings.metrics_bind), settings.metrics_port, settings.metrics_hosts, client.status),
        ):
            if begun is not None:
                begun(client)

            def renew() -> None:
                # The present connection goes on meanwhile.
                with manager.reloading():
                    client.renew()

            hangup.deliver(asyncio.get_running_loop(), renew)
            await report_to(manager, client, engine)

    async def main() -> None:
        stop = asyncio.Event()

        def end() -> None:
            manager.stopping("disconnecting")
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, end)
        # The signal to stop may come before the start.
        await first_of(stop.wait(), serve())

    _allow_sockets()
    _give_memory_back()
    loop.run(main())
    raise commands.Exit(cli.OK)


def _allow_sockets() -> None:
    """Raise the soft limit of open files to the hard one: each flow has a socket."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _give_memory_back() -> None:
    """Have glibc map each buffer of a flow by itself (mallopt(3)), so that its memory returns with the end of the flow.

    By default glibc raises the threshold to the largest freed buffer, and keeps most of the memory of many flows.
    """
    with suppress(OSError, AttributeError):  # another C library has no such function, and no need of it
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _FLOW_BUFFER)
