"""Build the pages in Markdown as a site that needs no network: ``python -m tools.build_site``.

They are staged in the places that they have in the tree, so that no link is rewritten. The navigation is the index in
docs/README.md: each page is listed there, and once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TypeAlias

from tools.check_site import faults

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "target" / "site"
INDEX = Path("docs/README.md")
FOLDERS = ("deploy", "docs")
"""Beside the pages of the root."""

_PART = re.compile(r"\| \*\*(.+)\*\* \| \|")
_PAGE = re.compile(r"\| \[.+?\]\((\S+?\.md)\) \| .+ \|")

Nav: TypeAlias = "list[str | dict[str, Nav]]"
"""Pages, and parts with the pages that they have."""


class SiteError(Exception):
    """The pages make no whole site; the text has a line for each fault."""


def build(root: Path = ROOT, site: Path = SITE) -> Path:
    """Make the site anew and check it; returns its folder. Raises ``SiteError``."""
    shutil.rmtree(site, ignore_errors=True)
    pages = site / "pages"
    stage(root, pages)
    nav = navigation(pages)
    settings = (root / "mkdocs.yml").read_text(encoding="utf-8")
    config = site / "mkdocs.yml"
    config.write_text(f"{settings}docs_dir: pages\nsite_dir: html\nnav: {json.dumps(nav)}\n", encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(config)]
    result = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    if result.returncode != 0:
        raise SiteError(result.stdout)
    found = faults(pages, site / "html")
    if found:
        raise SiteError("\n".join(found))
    return site / "html"


def stage(root: Path, pages: Path) -> None:
    """Copy the pages, and the files that they lead to, but no token that somebody has made for Compose."""
    for folder in FOLDERS:
        shutil.copytree(root / folder, pages / folder, ignore=shutil.ignore_patterns("*.token"))
    for page in root.glob("*.md"):
        shutil.copy(page, pages)


def navigation(pages: Path) -> Nav:
    """The index as the parts and pages of the site. Raises ``SiteError`` for a page that is not in it, or twice."""
    nav = _rows(pages, INDEX)
    nav[:2] = reversed(nav[:2])  # the first page of the index is that of the site
    listed = Counter(_paths(nav))
    wrong = [
        f"{page}: {count} times in the navigation, which is {INDEX}" for page, count in listed.items() if count > 1
    ]
    for page in sorted(str(path.relative_to(pages)) for path in pages.rglob("*.md")):
        if page not in listed:
            wrong.append(f"{page}: in no index; add it to {INDEX}")
    if wrong:
        raise SiteError("\n".join(wrong))
    return nav


def _rows(pages: Path, index: Path) -> Nav:
    """The navigation that an index has in its table; the index of a folder brings its own."""
    nav: Nav = [str(index)]
    present = nav
    table = (pages / index).read_text(encoding="utf-8").partition("|---|---|\n")[2].partition("\n\n")[0]
    for line in table.splitlines():
        part, page = _PART.fullmatch(line), _PAGE.fullmatch(line)
        if part is not None:
            present = []
            nav.append({part[1]: present})
        elif page is not None:
            target = Path(os.path.normpath(index.parent / page[1]))
            if target.name == INDEX.name and target.parent not in (Path(), index.parent):
                present.extend(_rows(pages, target))
            else:
                present.append(str(target))
        else:
            raise SiteError(f"{index}: {line!r} is neither '| **PART** | |' nor '| [PAGE](PAGE) | TEXT |'")
    return nav


def _paths(nav: Nav) -> list[str]:
    found = []
    for entry in nav:
        found += [entry] if isinstance(entry, str) else [path for part in entry.values() for path in _paths(part)]
    return found


if __name__ == "__main__":
    try:
        print(f"{build().relative_to(ROOT)} is whole; python3 -m http.server --directory target/site/html shows it")
    except SiteError as error:
        sys.exit(str(error))
