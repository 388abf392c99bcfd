"""``lab``: a whole network on this host, to look at and to try."""

from __future__ import annotations

import asyncio
import importlib
import json
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from intermediate_server import cli, loop
from intermediate_server.cli import commands
from intermediate_server.errors import SERVER, IntermediateServerError, needs

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from intermediate_server.testing import Lab, Step

REFRESH = 1.0
"""Seconds between two looks at the peers."""


def register(app: commands.Group) -> None:
    """Add the commands of this module."""
    app.command("lab")(lab)


def lab(
    once: Annotated[
        bool, commands.Option("--once", help="Bring it up, try it, end: 0, or 1 and the step named.")
    ] = False,
    directory: Annotated[
        Path | None, commands.Option("--dir", metavar="PATH", help="Where to keep its files; by default nowhere.")
    ] = None,
    as_json: Annotated[bool, commands.Option("--json", help="With --once: print the steps as JSON.")] = False,
) -> None:
    """Run a relay, a connector, an agent and three applications on this host, offline and without root.

    Shows what flows between them until Ctrl-C.
    """
    with needs(SERVER):
        importlib.import_module("intermediate_server.server")
        importlib.import_module("rich")
    with _directory(directory) as path:
        raise commands.Exit(loop.run(_lab(path, once=once, as_json=as_json)))


@contextmanager
def _directory(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="ztna-lab-") as name:
        yield Path(name)


async def _lab(directory: Path, *, once: bool, as_json: bool) -> int:
    from rich.console import Console  # noqa: PLC0415  see cli/__init__.py

    from intermediate_server.client.tasks import first_of  # noqa: PLC0415
    from intermediate_server.testing import Lab, Step  # noqa: PLC0415

    console = Console(highlight=False)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Lab.running(directory) as running:
        steps = []
        coming = running.steps()
        while (step := await first_of(anext(coming, None), stop.wait())) is not None:
            if step is True:
                step = Step(running.doing, 0.0, error="interrupted")
            steps.append(step)
            if not as_json:
                console.print(_line(step))
            if stop.is_set():
                break
        failed = steps[-1].error is not None
        if as_json:
            commands.echo(json.dumps([_plain(step) for step in steps], indent=2))
        if once or failed:
            return cli.FAILED if failed else cli.OK
        return await _show(running, console, stop)


async def _show(running: Lab, console: Any, stop: asyncio.Event) -> int:
    from rich.live import Live  # noqa: PLC0415

    from intermediate_server.client.tasks import first_of  # noqa: PLC0415

    console.print("\nTry it; Ctrl-C ends it:")
    console.print(f"  curl {running.urls['web']}", style="bold")
    for name in ("tcp-echo", "udp-echo"):
        host, _, port = running.urls[name].rpartition("//")[2].rpartition(":")
        console.print(f"  nc {'-u ' if name.startswith('udp') else ''}{host} {port}", style="bold")
    with Live(console=console, auto_refresh=False) as live:
        while not stop.is_set():
            dead = running.ended()
            if dead is not None:
                console.print(f"a program ended by itself; the end of its log: {dead.lines[-3:]}")
                return cli.FAILED
            await first_of(stop.wait(), _look(running, live))
    return cli.OK


async def _look(running: Lab, live: Live) -> None:
    """Show the present state for a while; a peer that does not answer is shown as such."""
    try:
        ping = f"{1000 * await running.round_trip():.2f} ms"
    except (IntermediateServerError, TimeoutError) as error:
        ping = f"lost {error}"
    live.update(_table(await running.peers(), ping), refresh=True)
    await asyncio.sleep(REFRESH)


def _table(peers: list[dict[str, Any]], ping: str) -> Table:
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=f"ping through the relay: {ping}")
    for heading in (
        "peer",
        "seen at",
        "services",
        "packets out",
        "packets in",
        "bytes out",
        "bytes in",
        "RTT to relay",
    ):
        table.add_column(heading, justify="left" if heading in ("peer", "seen at", "services") else "right")
    for peer in peers:
        tunnel = peer.get("tunnel", {})
        table.add_row(
            peer["role"],
            str(peer.get("error") or peer.get("observed_address")),
            ", ".join(name for name, state in peer.get("services", {}).items() if state == "registered"),
            *(f"{tunnel.get(name, 0):,}" for name in ("packets_out", "packets_in", "bytes_out", "bytes_in")),
            f"{peer.get('rtt_ms', 0):.2f} ms",
        )
    return table


def _line(step: Step) -> str:
    if step.error is not None:
        return f"[red]failed[/red]  {step.name}: {step.error}"
    return f"[green]ok[/green]      {step.name} ({step.seconds:.1f} s): {step.result}"


def _plain(step: Step) -> dict[str, Any]:
    return {"step": step.name, "seconds": round(step.seconds, 3), "result": step.result, "error": step.error}
