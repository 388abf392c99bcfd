"""Loading: flags, environment and file become one checked set of settings, or a list of all errors.

``serve``, the reload on SIGHUP and ``check-config`` all come through here, so that they accept the same.
Precedence: flag, environment, file, default. Exactly one file is read: the one named by ``--config`` (or
``ZTNA_CONFIG``), else the first of ``DEFAULT_FILES`` that exists.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from intermediate_server.compat import files as compat
from intermediate_server.compat.arguments import ALIASES
from intermediate_server.config import files as config_files
from intermediate_server.config.callout import PATHS as CALLOUT_PATHS
from intermediate_server.config.environment import settings_from
from intermediate_server.config.fields import PATH_KINDS
from intermediate_server.config.host import default_state_dir
from intermediate_server.config.model import Settings
from intermediate_server.config.schema import Invalid, Model
from intermediate_server.config.values import quote, read_flag, read_path
from intermediate_server.errors import ConfigError

DEFAULT_FILES = (Path("/etc/intermediate-server/config.toml"), Path("intermediate-server.toml"))
"""Looked for in this order when no file is named; the first that exists is read."""

ENV_PREFIX = "ZTNA_"

OTHER_PROGRAMS = ("ZTNA_AGENT_", "ZTNA_CONNECTOR_")
"""Prefixes of the variables of other programs, which are no settings of the server."""

_MAX_PROBLEMS = 20


S = TypeVar("S", bound=Model)


@dataclass(frozen=True, slots=True)
class Resolved(Generic[S]):
    """Checked settings and where each came from."""

    settings: S
    origins: Mapping[str, str]
    """The flag, variable or file key of each setting that is not at its default."""
    file: Path | None
    """The configuration file that was read."""
    warnings: tuple[str, ...] = ()
    """Warnings about variables with our prefix that are no settings."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """Settings of one source; ``name`` spells a key as that source does."""

    name: Callable[[str], str]
    values: Mapping[str, Any]
    file: Path | None = None

    def place(self, key: str) -> str:
        """Where a key stands, for an error line."""
        return f"{self.file}: {self.name(key)}" if self.file else self.name(key)


@dataclass(slots=True)
class _Merge:
    model: type[Model]
    program: str
    """The program whose ``--help`` lists the settings."""
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unknown: list[tuple[_Layer, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other names of values; only the server has some."""
        return ALIASES if self.model is Settings else {}


def resolve(
    flags: Mapping[str, Any], *, env: Mapping[str, str], files: Sequence[Path] = DEFAULT_FILES
) -> Resolved[Settings]:
    """The settings from flags, environment and file, with the origin of each.

    ``flags`` holds settings by field name (``idle_timeout``), plus ``config`` for the file; a None is a flag not
    given. ``files`` are the paths tried when no file is named. Raises ``ConfigError`` with every problem found.
    """
    own = {name: value for name, value in env.items() if not name.startswith(OTHER_PROGRAMS)}
    merge, path = _merged(Settings, "serve", flags, own, ENV_PREFIX, files)
    _default_state_dir(merge, env)
    return _resolved(merge, Settings, path)


def resolve_client(model: type[S], program: str, flags: Mapping[str, Any], *, env: Mapping[str, str]) -> Resolved[S]:
    """As ``resolve``, for the program ``agent`` or ``connector``: no file is read unless one is named.

    Variables begin with ``ZTNA_AGENT_`` or ``ZTNA_CONNECTOR_``. Raises ``ConfigError``.
    """
    merge, path = _merged(model, program, flags, env, f"{ENV_PREFIX}{program.upper()}_", ())
    return _resolved(merge, model, path)


def _merged(
    model: type[Model],
    program: str,
    flags: Mapping[str, Any],
    env: Mapping[str, str],
    prefix: str,
    files: Sequence[Path],
) -> tuple[_Merge, Path | None]:
    flag_values = {name: value for name, value in flags.items() if value is not None and value != []}
    paths = frozenset(name for name, info in model.model_fields.items() if info.kind in PATH_KINDS)
    lists = frozenset(name for name, info in model.model_fields.items() if info.repeatable)
    env_values = settings_from(env, prefix, paths=paths | {"config"}, lists=lists)
    variable = env_values.pop("config", None)
    path = _find_file({"--config": flag_values.pop("config", None), f"{prefix}CONFIG": variable}, files)
    merge = _Merge(model, program)
    variables = _Layer(lambda key: f"{prefix}{_printable(_snake(key).upper())}", env_values)
    layers = [
        _Layer(lambda key: f"--{_kebab(key)}", flag_values),
        variables,
        _Layer(_printable, {} if path is None else _read_file(path, paths), path),
    ]
    for layer in layers:
        _merge(layer, merge)
    # The environment is shared with others; in a file of ours an unknown key is an error.
    foreign = [key for layer, key in merge.unknown if layer is variables]
    merge.unknown = [(layer, key) for layer, key in merge.unknown if layer is not variables]
    merge.warnings = [
        f"{variables.place(key)} is no setting and not read; {_hint(variables, key, merge)}"
        for key in foreign[:_MAX_PROBLEMS]
    ]
    return merge, path


def _resolved(merge: _Merge, model: type[S], path: Path | None) -> Resolved[S]:
    settings = _validate(merge, model)
    return Resolved(settings=settings, origins=merge.origins, file=path, warnings=tuple(merge.warnings))


def _read_file(path: Path, paths: frozenset[str]) -> dict[str, Any]:
    """The settings of a file; paths count from its directory, except in the older server's JSON."""
    values = config_files.read(path)
    if compat.is_old(path):
        return values
    return {key: _from_directory(path.parent, _snake(key), value, paths) for key, value in values.items()}


def _from_directory(directory: Path, name: str, value: Any, paths: Container[str]) -> Any:
    if name == "callout" and isinstance(value, dict):
        return {key: _from_directory(directory, _snake(str(key)), item, CALLOUT_PATHS) for key, item in value.items()}
    if name not in paths or not isinstance(value, str) or not value.strip() or value.strip() in ("-", "~"):
        return value
    return value if value.lstrip().startswith("~") else str(directory / value.strip())


def _find_file(named: Mapping[str, object], files: Sequence[Path]) -> Path | None:
    for name, value in named.items():
        if value is not None:
            try:
                return read_path(value)
            except ValueError as error:
                raise ConfigError(f"{name}: {error}") from None
    for path in files:
        try:
            if path.exists():
                return path
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from None
    return None


def _merge(layer: _Layer, merge: _Merge) -> None:
    """Add the settings that higher layers left open, noting unknown keys and settings given twice."""
    seen: dict[str, str] = {}
    auth: dict[str, str] = {}
    for key, value in layer.values.items():
        name = _snake(key)
        place = layer.place(key)
        if name not in merge.model.model_fields and name not in merge.aliases:
            merge.unknown.append((layer, key))
            continue
        if name in seen:
            merge.problems.append(f"{place}: the same setting as {seen[name]}")
            continue
        seen[name] = place
        if name in merge.aliases:
            try:
                if read_flag(value):
                    auth[place] = merge.aliases[name]
            except ValueError as error:
                merge.problems.append(f"{place}: {error}")
            continue
        if name == "client_auth" and isinstance(value, str):
            auth[place] = value.strip().lower()
        elif name not in merge.values:
            merge.values[name] = value
            merge.origins[name] = place
    _merge_client_auth(auth, merge)


def _merge_client_auth(auth: Mapping[str, str], merge: _Merge) -> None:
    """Settle ``client_auth`` and its two other names within one source; between sources precedence decides."""
    if len(set(auth.values())) > 1:
        merge.problems.append(f"{', '.join(auth)}: contradict each other; give one")
    elif auth and "client_auth" not in merge.values:
        place, value = next(iter(auth.items()))
        merge.values["client_auth"] = value
        merge.origins["client_auth"] = place


def _default_state_dir(merge: _Merge, env: Mapping[str, str]) -> None:
    if "state_dir" not in merge.values:
        try:
            merge.values["state_dir"] = default_state_dir(env)
        except ValueError as error:
            merge.problems.append(f"state-dir: {error}")
            merge.values["state_dir"] = Path(os.curdir)


def _validate(merge: _Merge, model: type[S]) -> S:
    settings: S | None = None
    try:
        settings = model.model_validate(merge.values)
    except Invalid as error:
        merge.problems.extend(_explain(error, merge))
        bad = {each.name for each in error.problems if each.name}
        if bad and not bad & {"cert", "key"}:
            # The model looks for contradictions only once each setting is valid; look among the valid ones now, so that
            # one round of repairs is enough.
            try:
                model.model_validate({name: value for name, value in merge.values.items() if name not in bad})
            except Invalid as second:
                merge.problems.extend(_explain(second, merge))
    if settings is None or merge.problems or merge.unknown:
        raise ConfigError(_report(merge))
    return settings


def _explain(error: Invalid, merge: _Merge) -> Iterator[str]:
    for problem in error.problems:
        place = merge.origins.get(problem.name, _kebab(problem.name))
        yield f"{place}: {problem.text}" if problem.name else problem.text


def _report(merge: _Merge) -> str:
    """All problems, one a line; suggestions are only sought for the lines that are shown."""
    total = len(merge.problems) + len(merge.unknown)
    lines = list(islice(_lines(merge), _MAX_PROBLEMS))
    if total > len(lines):
        lines.append(f"and {total - len(lines)} more")
    if len(lines) == 1:
        return lines[0]
    return "\n".join([f"{total} problems in the configuration:", *(f"  {line}" for line in lines)])


def _lines(merge: _Merge) -> Iterator[str]:
    yield from merge.problems
    for layer, key in merge.unknown:
        yield f"{layer.place(key)}: unknown setting; {_hint(layer, key, merge)}"


def _hint(layer: _Layer, key: str, merge: _Merge) -> str:
    """The known setting that is closest to a misspelt one."""
    known = [_kebab(name) for name in (*merge.model.model_fields, *merge.aliases)]
    near = difflib.get_close_matches(_kebab(key)[:64].lower(), known, n=1, cutoff=0.6)
    return f"did you mean {layer.name(near[0])}?" if near else f"intermediate-server {merge.program} --help lists them"


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _snake(name: str) -> str:
    return name.replace("-", "_")


def _printable(key: str) -> str:
    return key if len(key) <= 60 and key.isprintable() and key.isascii() else quote(key)
