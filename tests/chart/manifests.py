"""The rendered manifests of the chart, and what is in them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from tools.render_chart import CHART, RENDERED, ROOT, VALUES

Manifest = dict[str, Any]

NAMES = tuple(sorted(path.stem for path in VALUES.glob("*.yaml")))


def read(path: Path) -> list[Manifest]:
    """The documents of a file, without empty ones."""
    return [each for each in YAML(typ="safe").load_all(path.read_text(encoding="utf-8")) if each]


@cache
def manifests(name: str) -> tuple[Manifest, ...]:
    """Those of a file of values."""
    return tuple(read(RENDERED / f"{name}.yaml"))


def of_kind(name: str, kind: str) -> list[Manifest]:
    """The manifests of this kind."""
    return [each for each in manifests(name) if each["kind"] == kind]


def one(name: str, kind: str, called: str) -> Manifest:
    """The only manifest of this kind and name."""
    (found,) = (each for each in of_kind(name, kind) if each["metadata"]["name"] == called)
    return found


def workloads(name: str) -> Iterator[Manifest]:
    """What has pods."""
    yield from (*of_kind(name, "StatefulSet"), *of_kind(name, "Deployment"))


def component(workload: Manifest) -> str:
    """``server`` or ``connector``."""
    return str(workload["metadata"]["labels"]["app.kubernetes.io/component"])


def pod(workload: Manifest) -> Manifest:
    """The specification of its pods."""
    found: Manifest = workload["spec"]["template"]["spec"]
    return found


def container(workload: Manifest) -> Manifest:
    """The only container of its pods."""
    (found,) = pod(workload)["containers"]
    assert isinstance(found, dict)
    return found


def variables(workload: Manifest) -> dict[str, str]:
    """The environment of the container."""
    return {each["name"]: each["value"] for each in container(workload)["env"]}


def values(name: str | None = None) -> Manifest:
    """The default values, with those of a file over them as helm merges them."""
    (found,) = read(CHART / "values.yaml")
    for given in read(VALUES / f"{name}.yaml") if name else []:
        found = merged(found, given)
    return found


def merged(under: Manifest, over: Manifest) -> Manifest:
    """Objects within objects, key by key; anything else is replaced."""
    made = dict(under)
    for key, value in over.items():
        known = made.get(key)
        made[key] = merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return made


def helm() -> Path | None:
    """The helm that ``make`` has built, if it has."""
    return next(iter(sorted((ROOT / ".tools/bin").glob("helm-*"), reverse=True)), None)
