"""Every command on every page, run from top to bottom on hosts of the page's own."""

from __future__ import annotations

import pytest

from tests.docs import page
from tests.docs.conftest import Hosts
from tests.docs.page import ROOT, Page
from tests.docs.run import Run

RUN_ELSEWHERE = {"README.md"}
"""With more asserts in :mod:`tests.docs.test_tour`."""
MOST_NOT_RUN = 0.05
"""The share of commands that may be shown and not run; those of ``make`` are not run really."""


def pages() -> list[Page]:
    """All pages of the tree that a reader types from."""
    found = [path for name in ("*.md", "docs/**/*.md", "deploy/**/*.md") for path in sorted(ROOT.glob(name))]
    return [page.read(path) for path in found]


PAGES = pages()
RUN = [tried for tried in PAGES if tried.commands and tried.name not in RUN_ELSEWHERE]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("tried", RUN, ids=lambda tried: tried.name)
def test_the_commands_of(tried: Page, hosts: Hosts) -> None:
    Run(tried, hosts(tried.hosts)).all()


def test_each_page_has_the_form() -> None:
    faults = [fault for tried in PAGES for fault in tried.faults]
    assert not faults, "\n".join(faults)


def test_nearly_all_commands_are_run() -> None:
    skipped = [f"{tried.name}:{command.line}: {reason}" for tried in PAGES for reason, command in tried.skipped]
    run = [command.text for tried in PAGES for command in tried.commands]
    dry = sum(text.startswith("make ") for text in run)
    most = MOST_NOT_RUN * (len(run) + len(skipped))
    assert len(skipped) + dry <= most, "\n".join([f"{dry} commands of make", *skipped])
