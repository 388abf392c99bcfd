"""Models of settings: what they read, refuse and keep."""

from __future__ import annotations

from typing import Annotated

import pytest

from intermediate_server.config.schema import Invalid, Model, Problem, check, setting
from intermediate_server.config.values import Duration, Flag, Integer, Reads, Size, read_texts

Names = Annotated[tuple[str, ...], Reads(read_texts)]


class Sample(Model):
    port: Integer = setting("Network", "PORT", ..., "A port.", low=1, high=9)
    wait: Duration | None = setting("Times", "DURATION", None, "A wait.", low=1, high=120)
    names: Names = setting("Network", "NAME", (), "Names.")
    made: Size = setting("Limits", "SIZE", lambda: 4 << 10, "A size.")
    text: str = setting("Network", "WORD", "web", "A text.")
    on: Flag = setting("Network", "", False, "A switch.")

    @check
    def _check(self) -> None:
        if self.on and self.text == "off":
            raise ValueError("on is off")


class Larger(Sample):
    text: str = setting("Network", "WORD", "db", "Another text.")

    @check
    def _check_more(self) -> None:
        if self.port == 7:
            raise ValueError("7 is taken")


def wrong(model: type[Model], **values: object) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        model.model_validate(values)
    return caught.value.problems


def test_values_are_read_and_defaults_made() -> None:
    found = Sample.model_validate({"port": "3", "wait": "1m", "names": ["a", "a"], "on": "yes"})
    assert (found.port, found.wait, found.names, found.made, found.text, found.on) == (
        3,
        60.0,
        ("a",),
        4096,
        "web",
        True,
    )
    assert found.model_fields_set == {"port", "wait", "names", "on"}
    assert Sample(port=1).wait is None
    assert Sample(port=1, wait=None) == Sample(port=1), "None is a value of what is optional"


def test_all_that_is_wrong_is_told_at_once() -> None:
    assert wrong(Sample, wait="soon", text=1, nothing=2, names=[], made=None) == [
        Problem("wait", '\'soon\' is not a duration; write seconds, or "500ms", "30s", "5m", "2h"'),
        Problem("text", "1 is not text"),
        Problem("nothing", "no such setting"),
        Problem("made", 'None is not a size; write bytes, or "256KiB", "4MiB"'),
        Problem("port", "is missing"),
    ]
    assert wrong(Sample, port=10) == [Problem("port", "10 is out of range, 1 to 9")]
    assert wrong(Sample, port=1, wait=0.5) == [Problem("wait", "500ms is out of range, 1s to 2m")]


def test_contradictions_are_looked_for_among_right_values() -> None:
    assert wrong(Sample, port=1, on=True, text="off") == [Problem("", "on is off")]
    assert wrong(Larger, port=7, on=True, text="off") == [Problem("", "on is off")], "those of the base come first"
    assert wrong(Larger, port=7) == [Problem("", "7 is taken")]
    assert Sample(port=7).port == 7


def test_a_model_takes_over_the_settings_of_its_base() -> None:
    assert list(Larger.model_fields) == list(Sample.model_fields)
    assert (Larger(port=1).text, Sample(port=1).text) == ("db", "web")
    assert Larger(port=1) != Sample(port=1, text="db")


def test_nothing_changes_a_model() -> None:
    found = Sample(port=1)
    with pytest.raises(AttributeError, match="cannot be changed"):
        found.port = 2  # type: ignore[misc]
    other = found.model_copy(update={"port": 100})
    assert (found.port, other.port, set(other.model_fields_set)) == (1, 100, {"port"})
    assert hash(found) == hash(Sample(port=1))


def test_a_setting_knows_how_it_is_written() -> None:
    fields = Sample.model_fields
    assert [name for name, field in fields.items() if field.required] == ["port"]
    assert [name for name, field in fields.items() if field.made] == ["made"]
    assert [name for name, field in fields.items() if field.repeatable] == ["names"]
    assert [name for name, field in fields.items() if field.is_flag] == ["on"]
    assert fields["made"].show(1 << 20) == "1MiB"
    assert (fields["names"].show(("a", "b")), fields["on"].show(True)) == ("a,b", "true")
    assert (fields["wait"].bounds, fields["text"].bounds) == ("1s to 2m", None)
