"""The two processes of the benchmark, each on its own core, and what the kernel says about the server."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

SERVER_CORE = 0
GENERATOR_CORE = 1
LONGEST_RUN = 120.0
"""Seconds after which a load generator that does not end is killed; its own runs are shorter."""
_OPEN_FILES = 65_536

ROOT = Path(__file__).resolve().parent.parent
Metrics = Mapping[tuple[str, frozenset[tuple[str, str]]], float]
"""Samples by their name and labels."""


class BenchmarkError(Exception):
    """A run that cannot be measured; the text says why."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU time of the server at one moment."""

    wall: float
    threads: Mapping[int, tuple[str, int]]
    """Name and nanoseconds on a core, of each thread."""


@dataclass(frozen=True, slots=True)
class CpuUse:
    """CPU time of the server between two moments, in microseconds."""

    wall: float
    python: float
    """The main thread: the control plane."""
    engine: float
    """All other threads: the data plane."""

    @property
    def total(self) -> float:
        return self.python + self.engine

    @property
    def share(self) -> float:
        """Share of the server's one core, 0.0 to 1.0."""
        return self.total / self.wall


@dataclass(frozen=True, slots=True)
class Server:
    """A running server under test."""

    pid: int
    port: int
    metrics_port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cpu(self) -> Cpu:
        """Take the CPU times of all threads; nanoseconds from ``schedstat``, else ticks from ``stat``."""
        threads: dict[int, tuple[str, int]] = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            try:
                name = (task / "comm").read_text().strip()
                threads[int(task.name)] = name, _on_cpu(task)
            except (FileNotFoundError, ProcessLookupError):
                continue  # the thread ended while it was looked at
        return Cpu(time.monotonic() * 1e6, threads)

    def use(self, before: Cpu, after: Cpu) -> CpuUse:
        """What was spent between two samples."""
        spent = {tid: ns - before.threads.get(tid, ("", 0))[1] for tid, (_, ns) in after.threads.items()}
        python = spent.pop(self.pid, 0) / 1000
        return CpuUse(after.wall - before.wall, python, sum(spent.values()) / 1000)

    def resident(self) -> int:
        """Resident memory of the whole process in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise BenchmarkError(f"the kernel does not report the memory of process {self.pid}")

    def metrics(self) -> Metrics:
        """Every sample of ``/metrics`` by its name and labels."""
        text = _get(f"http://127.0.0.1:{self.metrics_port}/metrics")
        return {
            (sample.name, frozenset(sample.labels.items())): float(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def _on_cpu(task: Path) -> int:
    try:
        return int((task / "schedstat").read_text().split()[0])
    except FileNotFoundError:
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
    return body.decode()


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Start child processes of the block on ``core``: they inherit it from this thread."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def raise_file_limit() -> None:
    """Take as many open files as this process may have, for its children too."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_toml(item)}' for key, item in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value if isinstance(value, str | int | float) else str(value))


@contextmanager
def serving(program: Sequence[str], directory: Path, settings: Mapping[str, object]) -> Iterator[Server]:
    """Run ``program serve`` on its core with ``settings`` until the block ends; the log stays in ``directory``.

    Raises ``BenchmarkError`` with the end of the log when it does not become ready in 15 s.
    """
    port, metrics_port = _free_port(socket.SOCK_DGRAM), _free_port(socket.SOCK_STREAM)
    state = directory / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    every = {"port": port, "metrics-port": metrics_port, "bind": ["127.0.0.1"], "state-dir": state, **settings}
    config, log = directory / "server.toml", directory / "server.log"
    config.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in every.items()))
    with log.open("ab") as output, on_core(SERVER_CORE):
        process = subprocess.Popen(
            [*program, "serve", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Some measurements bring policies of their own.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))},
        )
    server = Server(process.pid, port, metrics_port)
    try:
        _await_ready(process, server, log)
        yield server
        if process.poll() is not None:
            raise BenchmarkError(f"the server ended during the run: {_tail(log)}")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_ready(process: subprocess.Popen[bytes], server: Server, log: Path) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchmarkError(f"the server ended at once: {_tail(log)}")
        try:
            _get(f"http://127.0.0.1:{server.metrics_port}/readyz")
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise BenchmarkError(f"the server was not ready after 15 s: {_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-8:])


class Generator:
    """One run of ``ztna-loadgen`` on its core."""

    def __init__(self, program: Path, arguments: Sequence[str]) -> None:
        with on_core(GENERATOR_CORE):
            self._process = subprocess.Popen(
                [str(program), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        self._watchdog = threading.Timer(LONGEST_RUN, self._process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()
        self._said: list[str] = []

    def wait_for(self, mark: str) -> None:
        """Read progress up to a mark such as ``@begin``. Raises ``BenchmarkError`` when the run ends before it."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line.startswith(mark):
                return
            self._said.append(line.strip())
        self.finish()
        raise BenchmarkError(f"the load generator never said {mark}")

    def finish(self) -> dict[str, Any]:
        """Close its stdin, wait for it and return its report. Raises ``BenchmarkError`` with what it said."""
        report, said = self._process.communicate()
        self._watchdog.cancel()
        if self._process.returncode != 0 or not report:
            raise BenchmarkError(f"the load generator failed: {' / '.join([*self._said, said.strip()])[-600:]}")
        answer: dict[str, Any] = json.loads(report)
        return answer

    def stop(self) -> None:
        """End the run whatever its state."""
        self._watchdog.cancel()
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def measured(
    program: Path,
    server: Server,
    arguments: Sequence[str],
    *,
    at_begin: Callable[[], None] | None = None,
    at_end: Callable[[], None] | None = None,
) -> tuple[dict[str, Any], CpuUse]:
    """Run the generator and take the server's CPU time over its window. The callbacks run inside the window's edges."""
    generator = Generator(program, ["--server", server.address, *arguments])
    try:
        generator.wait_for("@begin")
        before = server.cpu()
        if at_begin is not None:
            at_begin()
        generator.wait_for("@end")
        after = server.cpu()
        if at_end is not None:
            at_end()
        return generator.finish(), server.use(before, after)
    finally:
        generator.stop()
