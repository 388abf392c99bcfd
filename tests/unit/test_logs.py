"""Log lines: one event one line, for people or machines, and nothing a peer sends escapes from its field."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from intermediate_server import logs


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """Gives logging back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level


def written(
    format: Literal["console", "json"], level: Literal["debug", "info", "warning", "error"] = "info"
) -> io.StringIO:
    stream = io.StringIO()
    logs.configure(level=level, format=format, stream=stream)
    return stream


def test_a_console_line() -> None:
    stream = written("console")
    structlog.get_logger().info("Connection closed", peer="192.0.2.1:5", duration_s=1.5, reason="", who="a b")
    when, _, rest = stream.getvalue().partition(" ")
    assert rest == 'info    Connection closed peer=192.0.2.1:5 duration_s=1.5 reason="" who="a b"\n'
    assert abs((datetime.now(UTC) - datetime.fromisoformat(when)).total_seconds()) < 60


def test_a_json_line() -> None:
    stream = written("json")
    structlog.get_logger().warning("Dropped", count=3, path=Path("/x"), reason="bad\nsource")
    line = json.loads(stream.getvalue())
    assert stream.getvalue().count("\n") == 1
    assert list(line) == ["time", "level", "event", "count", "path", "reason"]
    assert (line["level"], line["event"], line["count"], line["path"]) == ("warning", "Dropped", 3, "/x")
    assert line["reason"] == "bad\nsource"


def test_levels_are_kept() -> None:
    stream = written("console", "warning")
    log = structlog.get_logger()
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [line.split()[2] for line in stream.getvalue().splitlines()] == ["c", "d"]


def test_libraries_log_into_the_same_stream() -> None:
    stream = written("json")
    logging.getLogger("some.library").warning("odd %s", "thing")
    logging.getLogger("some.library").debug("never: libraries log keys at debug level")
    logging.getLogger("some.library").error("wrong %d", "arguments")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["event"], first["logger"], first["level"]) == ("odd thing", "some.library", "warning")
    assert second["event"] == "wrong %d"


@pytest.mark.parametrize("format", ["console", "json"])
def test_a_traceback_has_no_values_of_variables(format: Literal["console", "json"]) -> None:
    stream = written(format)
    canary = "canary-" + "7" * 5

    def fails(secret: str) -> None:
        key = secret
        raise RuntimeError("failed" if key else "")

    try:
        fails(canary)
    except RuntimeError as error:
        structlog.get_logger().error("Broken", exc_info=error)
    text = stream.getvalue()
    assert "RuntimeError: failed" in text
    assert canary not in text
    if format == "json":
        assert "RuntimeError: failed" in json.loads(text)["exception"]


def test_a_stream_that_nobody_reads_ends_nothing() -> None:
    class Broken(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    logs.configure(stream=Broken())
    structlog.get_logger().info("into the void")


HOSTILE = st.text(st.characters(codec="utf-8"), max_size=60) | st.sampled_from(
    ["\n2026-01-01T00:00:00.000Z info    forged", "\x1b]0;title\x07", "\u202egnp.exe", "\u2028", "a=b", '"', "\r", "\0"]
)


@given(HOSTILE, HOSTILE)
def test_no_peer_can_forge_a_line_or_reach_the_terminal(event: str, value: str) -> None:
    stream = written("console")
    structlog.get_logger().info(f"Registration: Agent for service {event}", peer=value, conn=7)
    text = stream.getvalue()
    assert text.endswith(" conn=7.0\n")
    assert text[:-1].isprintable(), "one line, without control characters"
    stream = written("json")
    structlog.get_logger().info(event, peer=value)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["peer"]) == (event, value)
    assert stream.getvalue()[:-1].isprintable()
    assert stream.getvalue().isascii()


def test_people_read_a_name_and_a_short_number_and_machines_all_of_both() -> None:
    facts = {"conn": (2 << 32) | 7, "identity": "ab12" * 16, "subject": "CN=laptop"}
    stream = written("console")
    structlog.get_logger().info("New connection", **facts)
    assert stream.getvalue().endswith('New connection conn=7.2 identity="laptop ab12ab12ab12"\n')
    structlog.get_logger().info("New connection", conn=5, identity="anonymous")
    assert stream.getvalue().endswith("New connection conn=5.0 identity=anonymous\n")
    stream = written("json")
    structlog.get_logger().info("New connection", **facts)
    line = json.loads(stream.getvalue())
    assert {key: line[key] for key in facts} == facts


def test_a_web_server_is_not_told_of_as_an_error() -> None:
    stream = written("json")
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("uvicorn.error").warning("odd")
    [line] = (json.loads(each) for each in stream.getvalue().splitlines())
    assert (line["event"], line["logger"]) == ("odd", "uvicorn")
