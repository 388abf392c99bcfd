"""Whether a program has printed what a page says.

``...`` stands for any text in its line, alone in a line for any lines. A date and a time stand for any other, two
spaces and more for any number, ``ztj1_AbC...`` for any join token. Where a later command of the page has the same word
with ``...``, it is a name for what was printed in its place.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

TOKEN = "ztj1_"
NAME = re.compile(r"[\w:-]+\.\.\.")
_PART = re.compile(
    r"(?P<name>[\w:-]+\.\.\.)|(?P<any>\.\.\.)|(?P<spaces>  +)"
    r"|(?P<moment>(?<![\d:.-])(?:\d{4}-\d\d-\d\d[ T])?\d\d:\d\d(?::\d\d)?(?!:?\d))"
    r"|(?P<date>(?<![\d-])\d{4}-\d\d-\d\d(?![\d-]))"
)
_MOMENT = r"(?:\d{4}-\d\d-\d\d[ T])?\d\d:\d\d(?::\d\d)?"
_DATE = r"\d{4}-\d\d-\d\d"


class Expected:
    """The lines below a command."""

    def __init__(self, lines: Sequence[str], names: Collection[str] = ()) -> None:
        """``names`` are the words with ``...`` that commands of the page have."""
        self._names: list[str] = []
        self._wanted = names
        self._text = "".join(r"(?:[^\n]*\n)*?" if line.strip() == "..." else f"{self._line(line)}\n" for line in lines)

    def match(self, printed: str, *, whole: bool = True) -> dict[str, str] | None:
        """What the names stand for; None if something else was printed.

        Without ``whole`` the lines may be followed, and preceded, by others.
        """
        lines = [line.rstrip() for line in printed.splitlines()]
        while lines and not lines[-1]:
            del lines[-1]
        text = "".join(f"{line}\n" for line in lines)
        pattern = self._text if whole else rf"(?:[^\n]*\n)*?{self._text}(?:[^\n]*\n?)*"
        found = re.fullmatch(pattern, text)
        return None if found is None else dict(zip(self._names, found.groups(), strict=True))

    def _line(self, line: str) -> str:
        pattern, at = "", 0
        for part in _PART.finditer(line):
            pattern += re.escape(line[at : part.start()]) + self._part(part)
            at = part.end()
        return pattern + re.escape(line[at:])

    def _part(self, part: re.Match[str]) -> str:
        match part.lastgroup:
            case "name" if part[0] in self._names:
                return rf"(?:\{self._names.index(part[0]) + 1})"
            case "name" if part[0] in self._wanted:
                self._names.append(part[0])
                return r"([\w:-]+)"
            case "name" if part[0].startswith(TOKEN):
                return rf"{TOKEN}[\w-]+"
            case "name":
                return re.escape(part[0].removesuffix("...")) + r"[^\n]*?"
            case "any":
                return r"[^\n]*?"
            case "moment":
                return _MOMENT
            case "date":
                return _DATE
        return " +"


def filled(command: str, known: Mapping[str, str]) -> str:
    """A command with what its names stand for. Raises ``KeyError`` for one that no output has explained."""
    return NAME.sub(lambda found: known[found[0]], command)
