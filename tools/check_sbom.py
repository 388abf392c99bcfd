"""Check bills of materials: that CycloneDX understands them, and that they name all that is shipped."""

import json
import re
import subprocess
from importlib.metadata import distributions
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from tools.artefacts import ROOT
from tools.sbom import CRATES, DIRECTORY, PACKAGES

TARGET = "x86_64-unknown-linux-gnu"
"""Of the wheel, the image and the packages."""


def check_prefix(prefix: Path) -> str:
    """Check both documents of an environment; returns what they name, for people."""
    crates = check_crates((prefix / DIRECTORY / CRATES).read_text(encoding="utf-8"))
    (site,) = prefix.glob("lib/python*/site-packages")
    packages = {(normal(each.name), each.version) for each in distributions(path=[str(site)])}
    named = {(normal(name), version) for name, version in parts((prefix / DIRECTORY / PACKAGES).read_text("utf-8"))}
    report(PACKAGES, missing=packages - named, unknown=named - packages)
    return f"{crates} crates and {len(packages)} Python packages"


def check_crates(document: str) -> int:
    """Check the document that a wheel holds; returns how many crates are shipped.

    It also names crates for other targets: maturin takes the whole lock.
    """
    tree = ["cargo", "tree", "--locked", "--package", "ztna-binding", "--edges", "normal,build", "--target", TARGET]
    found = subprocess.run(
        [*tree, "--prefix", "none", "--no-dedupe", "--format", "{p}"],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    crates = {(name, version.removeprefix("v")) for name, version, *_ in map(str.split, found.stdout.splitlines())}
    report(CRATES, missing=crates - parts(document), unknown=set())
    return len(crates)


def parts(document: str) -> set[tuple[str, str]]:
    """Name and version of the components of a document that keeps to its schema."""
    bill = json.loads(document)
    wrong = JsonStrictValidator(SchemaVersion.from_version(bill["specVersion"])).validate_str(document)
    if wrong is not None:
        raise SystemExit(f"a bill of materials is no CycloneDX {bill['specVersion']}: {wrong}")
    whole = [bill["metadata"]["component"]] if "component" in bill["metadata"] else []
    return {(each["name"], each["version"]) for each in [*whole, *bill["components"]]}


def normal(name: str) -> str:
    """A name as Python's package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def report(document: str, *, missing: set[tuple[str, str]], unknown: set[tuple[str, str]]) -> None:
    if missing or unknown:
        raise SystemExit(f"{document} does not name {sorted(missing)}, and names {sorted(unknown)}, which is not there")
