"""Whether a built site is whole, stays on its host and shows each page as the Markdown says.

Zensical checks links between pages. Here links to all other files count as well, and each page is compared with
CommonMark, which Python-Markdown leaves in places: a list needs an empty line before it, for example.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from markdown_it import MarkdownIt

COMPARED = {*(f"h{level}" for level in range(1, 7)), "a", "em", "li", "ol", "pre", "strong", "td", "th", "tr", "ul"}
"""Elements by which the rendering of a page is compared."""
ADDED = {"headerlink", "filename"}
"""Classes of what only the site has in a page."""
REQUESTS = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}
"""Elements that a browser fetches by itself, with the attribute that names it."""


class Page(HTMLParser):
    """What counts of one page."""

    def __init__(self, html: str, *, within: str | None = None) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.requests: list[str] = []
        self.content: list[str] = []
        """Elements and words in their order, inside the element ``within``."""
        self._within = within
        self._inside = within is None
        self._hidden: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element says."""
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if REQUESTS.get(tag, "") in given:
            self.requests.append(given[REQUESTS[tag]])
        if tag == self._within:
            self._inside = True
        if ADDED & set(given.get("class", "").split()):
            self._hidden = tag
        elif self._inside and self._hidden is None and tag in COMPARED and "tabindex" not in given:
            self.content.append(f"<{tag}>")

    def handle_endtag(self, tag: str) -> None:
        """Note where the content ends."""
        if tag == self._hidden:
            self._hidden = None
        if tag == self._within:
            self._inside = False

    def handle_data(self, data: str) -> None:
        """Note the words."""
        if self._inside and self._hidden is None:
            self.content += data.split()


def faults(pages: Path, site: Path) -> list[str]:
    """A line for each link that leads nowhere, each request to another host and each page that is shown wrongly."""
    built = {path: Page(path.read_text(encoding="utf-8"), within="article") for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in built.items():
        found += [f"{path.relative_to(site)}: {fault}" for fault in _links(path, page, built)]
    for source in sorted(pages.rglob("*.md")):
        name = source.relative_to(pages)
        shown = built.get(site / name.with_name("index.html" if name.name == "README.md" else f"{name.stem}.html"))
        found += [f"{name}: is not built"] if shown is None else _difference(name, source, shown)
    return found


def _links(path: Path, page: Page, built: dict[Path, Page]) -> Iterator[str]:
    for request in page.requests:
        if urlsplit(request).netloc or urlsplit(request).scheme:
            yield f"asks another host for {request}"
    # The page for what is not found is served anywhere, so that its links begin at the root.
    if path.name == "404.html":
        return
    for link in page.links + page.requests:
        plain, fragment = urldefrag(link)
        if urlsplit(link).netloc or urlsplit(link).scheme:
            continue
        target = (path.parent / unquote(plain)).resolve() if plain else path
        if not target.is_file():
            yield f"{link} leads nowhere"
        elif fragment and target in built and unquote(fragment) not in built[target].ids:
            yield f"{link} leads to no heading"


def _difference(name: Path, source: Path, shown: Page) -> list[str]:
    """The first place at which a page is not what CommonMark makes of it."""
    html = MarkdownIt("commonmark").enable("table").render(source.read_text(encoding="utf-8"))
    wanted = "".join(Page(html).content)
    got = "".join(shown.content)
    if wanted == got:
        return []
    same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(wanted, got, strict=False))))
    start = max(0, same - 60)
    return [f"{name}: the site shows ...{got[start : same + 60]}... in place of ...{wanted[start : same + 60]}..."]
