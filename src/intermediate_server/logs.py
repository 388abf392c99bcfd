"""Log lines: for people on a console, or one JSON object a line for machines.

Everything goes to standard error. A peer's text (a service id, a close reason, a certificate's subject) is escaped
before it is written, so that no peer can forge a line or reach the terminal behind it.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Hashable, MutableMapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

import structlog

_CONNECTION = re.compile(r"([0-9]{1,10})\.([0-9]{1,10})|[0-9]{1,20}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_QUOTED = re.compile("[ =\"']")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(
    *,
    level: Literal["debug", "info", "warning", "error"] = "info",
    format: Literal["console", "json"] = "console",
    stream: TextIO | None = None,
) -> None:
    """Set up structlog for this process; ``stream`` is standard error when None."""
    structlog.configure(
        processors=[_json_line if format == "json" else _console_line],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: _Lines(stream if stream is not None else sys.stderr),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [_Forward()]
    root.setLevel(max(_LEVELS[level], logging.INFO))
    # They log each request and each step of a start at info level, which is too much for operators.
    for name in ("httpx", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)


def log_configuration(file: Path | None, warnings: Sequence[str]) -> None:
    """Log the file of the settings, named or found, and the warnings about them."""
    log = structlog.get_logger()
    if file is not None:
        log.info("Configuration read", file=str(file.absolute()))
    for warning in warnings:
        log.warning(warning)


class Repeats:
    """Keeps repeated causes to one log line each in half a minute.

    Causes may be made up by peers, so only the newest ``most`` are remembered.
    """

    def __init__(self, *, interval: float = 30.0, most: int = 1024) -> None:
        self._interval = interval
        self._most = most
        self._told: dict[Hashable, tuple[float, int]] = {}

    def due(self, cause: Hashable, now: float) -> dict[str, int] | None:
        """None while the cause has had its line; else the fields of the line, with the number of lines left out.

        ``now`` is in seconds of any clock that only goes forward.
        """
        last, unsaid = self._told.pop(cause, (now - self._interval, 0))
        due = now - last >= self._interval
        if len(self._told) >= self._most:
            del self._told[next(iter(self._told))]
        self._told[cause] = (now, 0) if due else (last, unsaid + 1)
        if not due:
            return None
        return {"more": unsaid} if unsaid else {}


class _Forward(logging.Handler):
    """Passes on the log lines of libraries, so that there is one stream in one format."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger()
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = str(record.msg)
        # uvicorn logs everything as "uvicorn.error", errors or not.
        name = record.name.removesuffix(".error") if record.name.startswith("uvicorn.") else record.name
        logger.log(record.levelno, text, logger=name, **({"exc_info": record.exc_info} if record.exc_info else {}))


def printable(text: str) -> str:
    """The text without characters that move a cursor, end a line or reorder text."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class _Lines:
    """Writes finished lines; a stream without a reader does not end the server."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass

    debug = info = warning = error = critical = exception = msg


@lru_cache(maxsize=2)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def _now() -> str:
    now = time.time()
    whole = int(now)
    return f"{_second(whole)}.{int((now - whole) * 1000):03d}Z"


def short_connection(conn: int) -> str:
    """The short name of a connection: its place at the relay, and how many have had that place."""
    return f"{conn & 0xFFFF_FFFF}.{conn >> 32}"


def read_connection(text: str) -> int | None:
    """The connection of this number or short name; None for other texts."""
    match = _CONNECTION.fullmatch(text)
    if match is None:
        return None
    if match[1] is None:
        return int(text)
    place, count = int(match[1]), int(match[2])
    return count << 32 | place if place < 1 << 32 else None


def short_identity(fingerprint: str, subject: str = "") -> str:
    """The short name of an identity: its name, and 12 digits of its fingerprint."""
    name = subject.removeprefix("CN=") if subject.count("=") == 1 else subject
    return f"{name} {fingerprint[:12]}" if name else fingerprint[:12]


def _for_people(event: MutableMapping[str, Any]) -> None:
    conn, identity = event.get("conn"), event.get("identity")
    if isinstance(conn, int):
        event["conn"] = short_connection(conn)
    if isinstance(identity, str) and _FINGERPRINT.fullmatch(identity):
        event["identity"] = short_identity(identity, str(event.pop("subject", "")))


def _console_line(_: object, level: str, event: MutableMapping[str, Any]) -> str:
    trace = _trace(event.pop("exc_info", None))
    _for_people(event)
    parts = [_now(), f"{level:<7}", printable(str(event.pop("event", "")))]
    parts.extend(f"{key}={_value(value)}" for key, value in event.items())
    line = " ".join(parts)
    return f"{line}\n{trace}" if trace else line


def _json_line(_: object, level: str, event: MutableMapping[str, Any]) -> str:
    line: dict[str, Any] = {"time": _now(), "level": level, "event": event.pop("event", "")}
    trace = _trace(event.pop("exc_info", None))
    line.update(event)
    if trace:
        line["exception"] = trace
    return json.dumps(line, default=str)


def _value(value: object) -> str:
    if type(value) is int:
        return str(value)
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if text and text.isprintable() and _QUOTED.search(text) is None:
        return text
    return json.dumps(text)


def _trace(info: object) -> str:
    error: BaseException | None
    if isinstance(info, BaseException):
        error = info
    elif isinstance(info, tuple):
        error = info[1]
    else:
        error = sys.exc_info()[1] if info else None
    if error is None:
        return ""
    trace: TracebackType | None = error.__traceback__
    text = "".join(traceback.format_exception(type(error), error, trace))
    return "\n".join(printable(line) for line in text.rstrip().splitlines())
