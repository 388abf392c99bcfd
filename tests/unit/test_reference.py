"""The pages of reference say what the code says."""

import re
from pathlib import Path

import pytest
from tools.click_tree import commands
from tools.reference import CHECKS, PAGES, plain


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_holds_no_control_character(page: Path) -> None:
    assert all(line.isprintable() for line in PAGES[page]().splitlines())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_what_the_code_makes(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == PAGES[page](), "run python -m tools.reference"


def test_each_command_is_there_with_each_flag() -> None:
    (text,) = (render() for page, render in PAGES.items() if page.name == "commands.md")
    sections = {section.partition("\n")[0]: section for section in re.split(r"^##+ ", text, flags=re.MULTILINE)}
    for command in commands():
        name = command.path.partition(" ")[2]
        section = sections[name or command.path]
        if name in CHECKS:
            section += sections[CHECKS[name]]
        for term, _ in (row for rows in command.options.values() for row in rows if row[0] != "--help"):
            assert f"- `{term}`: " in section or f"`{term.split()[0]}`" in section, (name, term)
        for term, _ in command.arguments:
            assert f"- `{term}`: " in section


def test_markdown_takes_no_text_for_an_order() -> None:
    assert plain("*.example, <x> and [y](z)") == r"\*.example, \<x> and \[y](z)"
