"""Runs a page from top to bottom."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.docs.machine import PATIENCE, Machine, Typed, until
from tests.docs.output import NAME, Expected, filled
from tests.docs.page import Command, File, Page

LISTENS = 30.0
"""Seconds in which a command with ``&`` begins to listen or ends, if it ever does."""
_PROGRAM = r"(?:\w+=\S+ )*(?:\S*/)?intermediate-server "
_STAYS = {
    rf"{_PROGRAM}serve(?! .*--help)": "Server listening on",
    rf"{_PROGRAM}(?:agent|connector)(?! (?:status|check-config|.*--help))": "Registered as",
    rf"{_PROGRAM}lab(?! .*--(?:once|help))": "Ctrl-C",
}
"""The programs that go on, and what they print once they are ready."""
_LOOKS = re.compile(
    rf"(?:curl|ping|ss|cat|grep|ls|test|systemctl status|journalctl|docker compose (?:ps|logs)|{_PROGRAM}"
    r"(?:\w+ status|healthcheck|netcheck|token (?:list|pending)|pki list))\b"
)
"""Commands that only look, and look again until others have done their part."""
_CHANGES = re.compile(r" -X| --request| -d | --data| -[oO]\b| --output|(?<![0-9&])>")


@dataclass
class Run:
    """One page, on its hosts."""

    page: Page
    machines: Mapping[str, Machine]
    known: dict[str, str] = field(default_factory=dict)
    """What the names with ``...`` stand for."""
    done: list[tuple[Command, float]] = field(default_factory=list)
    """What was run, and when it was done (monotonic)."""
    running: list[tuple[Command, Typed]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._names = {name for command in self.page.commands for name in NAME.findall(command.text)}

    def all(self) -> None:
        """Run every command. Raises ``AssertionError`` for the first whose answer is another one."""
        for step in self.page.steps:
            if isinstance(step, File):
                self.machines[step.host].write(step.path, step.text)
            else:
                self._run(step)
                self.done.append((step, time.monotonic()))
        for command, typed in self.running:
            ours = re.search(_PROGRAM, command.text) is not None
            assert not ours or "Traceback (most recent" not in typed.printed, self._differs(command, typed)

    def _run(self, command: Command) -> None:
        machine = self.machines[command.host]
        terminal = machine.terminal(root=command.root)
        try:
            text = filled(command.text, self.known)
        except KeyError as error:
            raise AssertionError(self._report(command, f"no output above has the word {error}")) from None
        expected = Expected(command.expected, self._names)
        if text.endswith(" &"):
            before = machine.listening()
            typed = terminal.type(text)
            if command.expected:
                self._stay(command, typed, expected, "")
            else:
                until(lambda: machine.listening() != before or not terminal.goes_on(), LISTENS)
                assert terminal.goes_on(), self._differs(command, typed, "that it goes on, or ends well")
                self.running.append((command, typed))
            return
        ready = next((ready for program, ready in _STAYS.items() if re.search(rf"(?:^|&& |; ){program}", text)), None)
        if ready is not None and not command.status:
            self._stay(command, terminal.type(text, stays=True), expected, ready)
            return
        looks = _LOOKS.match(text) is not None and _CHANGES.search(text) is None
        end = time.monotonic() + PATIENCE / 2
        while True:
            typed = terminal.type(text)
            found = self._ended(command, typed, expected)
            if found is not None or not looks or time.monotonic() > end:
                break
            time.sleep(0.2)
        assert found is not None, self._differs(command, typed)
        self.known |= found

    def _ended(self, command: Command, typed: Typed, expected: Expected) -> dict[str, str] | None:
        """The names in the output of a command that ends; None if it is another one, or the status is."""
        until(lambda: typed.status is not None)
        if typed.status != command.status:
            return None
        return expected.match(typed.printed) if command.expected else {}

    def _stay(self, command: Command, typed: Typed, expected: Expected, ready: str) -> None:
        """Wait until a program that goes on is ready: has printed the lines of the page, else that it is."""

        def is_ready() -> bool:
            printed = typed.printed
            return expected.match(printed, whole=False) is not None if command.expected else ready in printed

        until(lambda: is_ready() or (typed.status is not None and not command.text.endswith("&")))
        assert is_ready(), self._differs(command, typed, ready)
        self.known |= expected.match(typed.printed, whole=False) or {}
        self.running.append((command, typed))

    def _differs(self, command: Command, typed: Typed, ready: str = "") -> str:
        wanted = "\n".join(command.expected) or ready or "(anything)"
        status = "it still runs" if typed.status is None else f"exit status {typed.status}"
        return self._report(
            command, f"wanted, with exit status {command.status}:\n{wanted}\n\ngot, {status}:\n{typed.printed}"
        )

    def _report(self, command: Command, text: str) -> str:
        others = "".join(
            f"\n\n{other.typed} (line {other.line}) runs, and its last lines are:\n{_last(typed.printed)}"
            for other, typed in self.running
        )
        return f"{self.page.name}:{command.line}: {command.typed}\n{text}{others}"


def _last(printed: str) -> str:
    return "\n".join(printed.splitlines()[-12:])
