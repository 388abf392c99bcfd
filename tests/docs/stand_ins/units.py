"""Unit files, as far as those of this project and their drop-ins go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PLACES = [Path(place) for place in ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system")]


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit with its drop-ins, as it was when it was read."""

    name: str
    path: Path
    lines: tuple[tuple[str, str, str], ...]
    """Section, key and value; an empty value takes away what came before it."""

    def all(self, section: str, key: str) -> list[str]:
        """Each value of a key."""
        found: list[str] = []
        for its_section, its_key, value in self.lines:
            if (its_section, its_key) == (section, key):
                found = [*found, value] if value else []
        return [value.replace("%d", f"/run/credentials/{self.name}").replace("%n", self.name) for value in found]

    def last(self, section: str, key: str, default: str = "") -> str:
        """The value that counts of a key that has one."""
        return next(reversed(self.all(section, key)), default)

    def words(self, section: str, key: str) -> list[str]:
        """The words of all values of a key."""
        return [word for value in self.all(section, key) for word in value.split()]


def full_name(name: str) -> str:
    """A unit's name with its kind."""
    return name if name.endswith((".service", ".socket")) else f"{name}.service"


def load(name: str) -> Unit:
    """Read a unit and its drop-ins. Raises ``LookupError`` when there is none."""
    path = next((place / name for place in PLACES if (place / name).is_file()), None)
    if path is None:
        raise LookupError(f"Unit {name} not found.")
    drop_ins: dict[str, Path] = {}
    for place in reversed(PLACES):
        drop_ins |= {file.name: file for file in (place / f"{name}.d").glob("*.conf")}
    files = [path, *(drop_ins[file] for file in sorted(drop_ins))]
    return Unit(name, path, tuple(line for file in files for line in _lines(file)))


def _lines(file: Path) -> list[tuple[str, str, str]]:
    section, lines = "", []
    for line in file.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        text = line.strip()
        if text.startswith("["):
            section = text.strip("[]")
        elif text and text[0] not in "#;":
            key, _, value = text.partition("=")
            lines.append((section, key.strip(), value.strip()))
    return lines
