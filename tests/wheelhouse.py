"""Wheels of this tree and of what it needs, packed again from what the tests have installed.

``python tests/wheelhouse.py OURS OTHERS [VERSION...]`` puts ours into one directory and the others into another one, so
that pip can be run without a network. With versions ours is there once for each, the same but for that number.
"""

from __future__ import annotations

import sys
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NAME = "intermediate-server"
ROOT = Path(__file__).resolve().parents[1]
_WHEEL = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: {pure}\nTag: {tag}\n"


def needed(name: str, extras: tuple[str, ...] = ()) -> dict[str, Distribution]:
    """A distribution and all that it needs, with these extras of its own, by name."""
    found: dict[str, Distribution] = {}
    waiting = [(name, ("", *extras))]
    while waiting:
        wanted, its_extras = waiting.pop()
        each = canonicalize_name(wanted)
        if each in found:
            continue
        found[each] = distribution(each)
        for text in found[each].requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in its_extras):
                waiting.append((requirement.name, ("", *requirement.extras)))
    return found


def pack(found: Distribution, directory: Path, version: str | None = None) -> None:
    """The wheel of an installed distribution, of which the files are taken from this tree where it is ours."""
    ours = canonicalize_name(found.name) == NAME
    stem = f"{found.name.replace('-', '_')}-{version or found.version}"
    if ours:
        tag = f"cp{sys.version_info.major}{sys.version_info.minor}-abi3-linux_x86_64"
        package = ROOT / "src/intermediate_server"
        files = {path.relative_to(package.parent): path for path in package.rglob("*") if path.is_file()}
    else:
        tag = next(line for line in (found.read_text("WHEEL") or "").splitlines() if line.startswith("Tag: "))[5:]
        files = {Path(str(each)): Path(str(found.locate_file(each))) for each in found.files or ()}
    kept = {
        str(name): path for name, path in files.items() if ".." not in name.parts and "__pycache__" not in name.parts
    }
    about = f"{stem}.dist-info"
    with zipfile.ZipFile(directory / f"{stem}-{tag}.whl", "w") as wheel:
        names = [name for name in kept if ".dist-info/" not in name]
        for name in names:
            wheel.write(kept[name], name)
        metadata = found.read_text("METADATA") or ""
        if version is not None:
            metadata = metadata.replace(f"\nVersion: {found.version}\n", f"\nVersion: {version}\n", 1)
        wheel.writestr(f"{about}/METADATA", metadata)
        wheel.writestr(f"{about}/WHEEL", _WHEEL.format(tag=tag, pure=str(tag.endswith("none-any")).lower()))
        wheel.writestr(f"{about}/entry_points.txt", found.read_text("entry_points.txt") or "")
        meta = [f"{about}/{name}" for name in ("METADATA", "WHEEL", "entry_points.txt", "RECORD")]
        wheel.writestr(f"{about}/RECORD", "".join(f"{name},,\n" for name in (*names, *meta)))


def main() -> None:
    """Make both directories."""
    ours, others = map(Path, sys.argv[1:3])
    for name, found in needed(NAME, ("server", "tun")).items():
        directory = ours if name == NAME else others
        directory.mkdir(parents=True, exist_ok=True)
        for version in (sys.argv[3:] if name == NAME else ()) or (None,):
            pack(found, directory, version)


if __name__ == "__main__":
    main()
