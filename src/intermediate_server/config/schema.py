"""Models of settings: a class declares them, its constructor reads and checks them, its instances never change.

A setting is declared as ``port: Integer = setting(...)``. The annotation says how a value is read (``Reads``), the
declaration gives all else.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

from intermediate_server.config.values import Reads, quote, show_duration, show_size

C = TypeVar("C", bound=Callable[[Any], None])


def _read_str(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{quote(value)} is not text")
    return value


@dataclass(frozen=True, slots=True)
class Field:
    """A declared setting."""

    panel: str
    """Its group in ``--help``."""
    kind: str
    """The placeholder of its value in ``--help``."""
    default: Any
    """``...`` when it must be given; a function makes the default anew for each model."""
    description: str
    low: float | None = None
    high: float | None = None
    optional: bool = False
    """Whether None is a value of it."""
    is_flag: bool = False
    reader: Callable[[object], Any] = _read_str

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is ...

    @property
    def made(self) -> bool:
        """Whether its default depends on the host."""
        return callable(self.default)

    @property
    def repeatable(self) -> bool:
        """Whether it holds several values."""
        return bool(self.default == ())

    def annotated(self, hint: Any) -> Field:
        """This setting with the reader of its annotation."""
        parts = typing.get_args(hint)
        optional = typing.get_origin(hint) in (typing.Union, types.UnionType) and type(None) in parts
        if optional:
            hint = next(each for each in parts if each is not type(None))
        reader = next((each.function for each in getattr(hint, "__metadata__", ()) if isinstance(each, Reads)), None)
        is_flag = typing.get_args(hint)[:1] == (bool,)
        return replace(self, optional=optional, is_flag=is_flag, reader=reader or _read_str)

    def read(self, value: object) -> Any:
        """The checked value. Raises ``ValueError`` with a sentence that ends a line."""
        if value is None and self.optional:
            return None
        found = self.reader(value)
        if self.low is not None and self.high is not None and not self.low <= found <= self.high:
            raise ValueError(f"{self.show(found)} is out of range, {self.bounds}")
        return found

    def show(self, value: Any) -> str:
        """A value as a file or a flag would hold it."""
        if self.kind == "DURATION":
            return show_duration(float(value))
        if self.kind == "SIZE":
            return show_size(int(value))
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, tuple):
            return ",".join(str(item) for item in value)
        return f"{value}"

    @property
    def bounds(self) -> str | None:
        """The range as text, ``1s to 1h``; None when it has none."""
        if self.low is None or self.high is None:
            return None
        return f"{self.show(self.low)} to {self.show(self.high)}"


def setting(
    panel: str, kind: str, default: object, description: str, *, low: float | None = None, high: float | None = None
) -> Any:
    """Declare a setting; see :class:`Field`. Its range has both ends or none."""
    return Field(panel, kind, default, description, low, high)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the values of a model."""

    name: str
    """The setting, empty for what is wrong among several."""
    text: str


class Invalid(ValueError):
    """Values that make no model."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{each.name}: {each.text}" if each.name else each.text for each in problems))
        self.problems = problems


def check(method: C) -> C:
    """Mark a method of a model that looks for contradictions between its settings, and raises ``ValueError``."""
    method.__check__ = True  # type: ignore[attr-defined]
    return method


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Model:
    """Base of the models; settings are given by keyword, in any form that their readers take."""

    model_fields: ClassVar[Mapping[str, Field]] = {}
    _checks: ClassVar[tuple[str, ...]] = ()

    model_fields_set: frozenset[str]
    """The settings that were given."""

    def __init_subclass__(cls) -> None:
        hints = typing.get_type_hints(cls, include_extras=True)
        own = {name: each for name, each in vars(cls).items() if isinstance(each, Field)}
        cls.model_fields = {**cls.model_fields, **{name: each.annotated(hints[name]) for name, each in own.items()}}
        cls._checks = (*cls._checks, *(name for name, each in vars(cls).items() if hasattr(each, "__check__")))
        for name in own:
            delattr(cls, name)

    def __init__(self, **given: Any) -> None:
        """Raises ``Invalid`` with every wrong value; contradictions are looked for once each value is right."""
        values: dict[str, Any] = {}
        problems = []
        for name, value in given.items():
            try:
                values[name] = self._field(name).read(value)
            except ValueError as error:
                problems.append(Problem(name, str(error)))
        for name, field in self.model_fields.items():
            if name not in given and field.required:
                problems.append(Problem(name, "is missing"))
            elif name not in given:
                values[name] = field.default() if field.made else field.default
        if problems:
            raise Invalid(problems)
        self._hold(values, frozenset(given))
        for name in self._checks:
            try:
                getattr(self, name)()
            except ValueError as error:
                raise Invalid([Problem("", str(error))]) from None

    @classmethod
    def model_validate(cls, values: Mapping[str, Any]) -> Self:
        """The model of these values. Raises ``Invalid``."""
        return cls(**values)

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """A copy with other values, which are not checked."""
        made = object.__new__(type(self))
        made._hold({**self._values(), **update}, self.model_fields_set | update.keys())
        return made

    def _hold(self, values: Mapping[str, Any], given: frozenset[str]) -> None:
        vars(self).update({name: values[name] for name in self.model_fields}, model_fields_set=given)

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.model_fields}

    def _field(self, name: str) -> Field:
        field = self.model_fields.get(name)
        if field is None:
            raise ValueError("no such setting")
        return field

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} of {type(self).__name__} cannot be changed; make another with model_copy")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(tuple(self._values().values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._values().items())})"
