"""Dependencies are never older than the versions without known holes, and every one is pinned.

There is no advisory database to ask in CI, so tools/floors.toml is the list and these tests hold it.
"""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]


def read_toml(name: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / name).read_text(encoding="utf-8"))


def pinned() -> dict[str, Version]:
    """What constraints.txt holds, by canonical name."""
    found: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)(; .+)?", line)
        assert match, f"constraints.txt holds only name==version lines, with a marker perhaps, not {line!r}"
        found[canonicalize_name(match[1])] = Version(match[2])
    return found


def declared() -> Iterator[Requirement]:
    """Every requirement pyproject.toml names: to build, to run, to develop."""
    project = read_toml("pyproject.toml")
    for text in project["build-system"]["requires"]:
        yield Requirement(text)
    for text in project["project"]["dependencies"]:
        yield Requirement(text)
    for extra in project["project"]["optional-dependencies"].values():
        yield from map(Requirement, extra)
    for text in project["dependency-groups"]["checks"]:
        yield Requirement(text)


def release_tools() -> Iterator[Requirement]:
    """What builds and inspects wheels, and need not be installed for the tests."""
    yield from map(Requirement, read_toml("pyproject.toml")["dependency-groups"]["dist"])


def locked_crates() -> list[tuple[str, str]]:
    assert (ROOT / "Cargo.lock").exists(), "Cargo.lock is part of the repository"
    return [(package["name"], package["version"]) for package in read_toml("Cargo.lock")["package"]]


def test_locked_crates_are_above_their_floors() -> None:
    locked = locked_crates()
    too_old = []
    for entry in read_toml("tools/floors.toml")["crate"]:
        below = Version(entry["below"]) if "below" in entry else None
        for name, text in locked:
            if name != entry["name"]:
                continue
            found = Version(text)
            if found < Version(entry["floor"]) or (below and found.release >= below.release):
                too_old.append(f"{name} {found}: {entry['why']}")
    assert not too_old


@pytest.mark.parametrize("crate", ["noq-proto", "rustls", "rustls-webpki", "bytes", "pyo3"])
def test_the_crates_that_matter_have_a_floor_and_are_used(crate: str) -> None:
    """A renamed crate would otherwise leave its floor guarding nothing."""
    assert crate in {entry["name"] for entry in read_toml("tools/floors.toml")["crate"]}
    assert crate in {name for name, _ in locked_crates()}


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    pins = pinned()
    for requirement in (*declared(), *release_tools()):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is missing from constraints.txt"
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} does not allow the pinned {pin}"
        assert any(clause.operator == ">=" for clause in requirement.specifier), f"{requirement} has no lower bound"


def test_installed_packages_satisfy_the_declared_bounds() -> None:
    wrong = []
    for requirement in declared():
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            found = Version(version(requirement.name))
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement} does not allow the installed {found}")
    assert not wrong


def test_constraints_name_no_index() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^-", text, re.MULTILINE)
