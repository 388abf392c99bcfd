"""What a page tells its reader to type, and what it says will be answered.

CONTRIBUTING.md has the form. Sybil finds the blocks; this gives them their meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from sybil import Document, Example
from sybil.parsers.abstract.lexers import LexingException
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, RawFencedCodeBlockLexer

ROOT = Path(__file__).resolve().parents[2]
SHELLS = {"sh", "bash", "shell", "zsh", "shell-session", "sh-session", "terminal", "powershell"}
"""Languages of fences that would get past the test."""
_TYPED = re.compile(r"(?:[a-z][a-z0-9-]*[$#]|\$) +\S.*")
"""A line with a prompt that is nothing else in any language."""
_TOOLS = re.compile(r"(?:make|intermediate-server|curl|sudo|docker|systemctl|pip|git|cargo|python3?|apt(?:-get)?) \S.*")
"""How lines begin that a reader would type, also without a prompt."""

_PROMPT = re.compile(r"(?P<host>[a-z][a-z0-9-]*)?(?P<mark>[$#]) +(?P<text>\S.*)")
_TITLE = re.compile(r'(?P<language>\S+) +title="(?:(?P<host>[a-z][a-z0-9-]*):)?(?P<path>[^"]+)"')
_HEREDOC = re.compile(r"<<-? *(['\"]?)(?P<end>\w+)\1")


@dataclass(frozen=True, slots=True)
class File:
    """A file that the page shows, on the host ``host``."""

    host: str
    path: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Command:
    """One command, its lines as they are typed."""

    host: str
    """The name before the prompt; empty on a page about one host."""
    root: bool
    text: str
    expected: tuple[str, ...]
    """The lines below it; none: what it prints does not matter."""
    line: int
    """Where it is on the page, from 1."""
    status: int = 0

    @property
    def typed(self) -> str:
        """The command with its prompt."""
        return f"{self.host}{'#' if self.root else '$'} {self.text}"


@dataclass(slots=True)
class Page:
    """A page; ``faults`` has what is wrong with its form."""

    path: Path
    steps: list[File | Command] = field(default_factory=list)
    skipped: list[tuple[str, Command]] = field(default_factory=list)
    """Commands that are not run, with the reason that the page gives."""
    faults: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The path in the tree."""
        return str(self.path.relative_to(ROOT)) if self.path.is_relative_to(ROOT) else self.path.name

    @property
    def commands(self) -> list[Command]:
        """The commands that are run."""
        return [step for step in self.steps if isinstance(step, Command)]

    @property
    def hosts(self) -> list[str]:
        """The names of the hosts, in the order in which they occur."""
        return list(dict.fromkeys(step.host for step in self.steps))

    def fault(self, line: int, text: str) -> None:
        """Note what is wrong with the form of a line."""
        self.faults.append(f"{self.name}:{line}: {text}")


def read(path: Path) -> Page:
    """A page of the tree."""
    page = Page(path)
    try:
        examples = _examples(path)
    except (LexingException, ValueError) as error:  # of a remark that does not end, or one within a block
        page.faults.append(f"{page.name}: {error}")
        return page
    remark: Example | None = None
    for example in examples:
        found = example.region.lexemes
        directive = found.get("directive")
        if remark is not None and (directive or not _follows(remark, example)):
            page.fault(remark.line, "no block follows this remark directly")
            remark = None
        if directive == "run" and found["arguments"]:
            page.fault(example.line, "what is run stands in the lines below")
        elif directive == "run":
            page.steps += _commands(page, found["source"], example.line + 1)
        elif directive:
            remark = example
        else:
            _fence(page, example, remark)
            remark = None
    if remark is not None:
        page.fault(remark.line, "no block follows this remark directly")
    _indented(page, examples)
    return page


def _indented(page: Page, examples: list[Example]) -> None:
    """Find commands in blocks that are made by indentation alone."""
    inside = {example.line + number for example in examples for number in range(_lines(example))}
    for number, line in enumerate(page.path.read_text(encoding="utf-8").splitlines(), start=1):
        if number not in inside and line.startswith(("    ", "\t")) and _TYPED.fullmatch(line.strip()):
            page.fault(number, "commands are in blocks of the language console")


def _lines(example: Example) -> int:
    return example.document.text[example.start : example.end].count("\n") + 1


def _examples(path: Path) -> list[Example]:
    fences = RawFencedCodeBlockLexer(re.compile(r"(?P<info>[^\n]*)\n"))
    remarks = DirectiveInHTMLCommentLexer(r"(?:run|status|not run)\b")
    return list(Document.parse(str(path), fences, remarks).examples())


def _follows(remark: Example, example: Example) -> bool:
    between = remark.document.text[remark.end : example.start]
    return between.partition("-->")[2].strip() == ""


def _fence(page: Page, example: Example, remark: Example | None) -> None:
    info, source = example.region.lexemes["info"].strip(), example.region.lexemes["source"]
    title = _TITLE.fullmatch(info)
    if title and title["language"] != "console":
        page.steps.append(File(title["host"] or "", title["path"], source, example.line))
    elif info == "console":
        commands = list(_commands(page, source, example.line + 1))
        match remark.region.lexemes if remark is not None else {}:
            case {"directive": "not run", "arguments": str(reason)}:
                if not reason:
                    page.fault(example.line, "a block that is not run needs a reason")
                page.skipped += [(reason, command) for command in commands]
                return
            case {"directive": "status", "arguments": str(status)}:
                if not status.isdecimal():
                    page.fault(remark.line if remark else 0, f"this is no exit status: {status}")
                    return
                commands[-1:] = [replace(command, status=int(status)) for command in commands[-1:]]
        page.steps += commands
        return
    else:
        lines = source.splitlines()
        language = re.sub(r"[{}.]", "", info).split(" ")[0].lower()
        if language in SHELLS or language == "console":
            page.fault(example.line, f"commands are in blocks of the language console, not {info}")
        elif any(_TYPED.fullmatch(line) or (not info and _TOOLS.fullmatch(line)) for line in lines):
            page.fault(example.line, "a block with commands needs the language console")
    if remark is not None:
        page.fault(remark.line, "only a block with commands has such a remark")


def _commands(page: Page, source: str, first: int) -> Iterator[Command]:
    current: Command | None = None
    until: str | None = None
    for number, line in enumerate(source.splitlines(), start=first):
        if current is not None and until is not None:
            current = replace(current, text=f"{current.text}\n{line}")
            until = None if line == until else until
        elif current is not None and current.text.endswith("\\") and not current.expected:
            current = replace(current, text=f"{current.text}\n{line}")
            until = _heredoc(line)
        elif prompt := _PROMPT.fullmatch(line):
            if current is not None:
                yield _trimmed(current)
            current = Command(prompt["host"] or "", prompt["mark"] == "#", prompt["text"], (), number)
            until = _heredoc(prompt["text"])
        elif current is not None:
            current = replace(current, expected=(*current.expected, line.rstrip()))
        elif line.strip():
            page.fault(number, f"no command is above this output: {line}")
    if current is not None:
        yield _trimmed(current)


def _heredoc(line: str) -> str | None:
    found = _HEREDOC.search(line)
    return None if found is None else found["end"]


def _trimmed(command: Command) -> Command:
    expected = list(command.expected)
    while expected and not expected[-1]:
        del expected[-1]
    return replace(command, expected=tuple(expected))
