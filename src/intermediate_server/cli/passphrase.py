"""Asking for a passphrase, which no argument and no variable holds."""

from __future__ import annotations

import getpass
import sys

from intermediate_server.errors import ConfigError

MAX_CHARACTERS = 1024


def read_passphrase(*, twice: bool = False) -> bytes:
    """A passphrase from the terminal, asked ``twice`` when it is new, else a line of standard input.

    Raises ``ConfigError``.
    """
    if not sys.stdin.isatty():
        word = sys.stdin.readline(MAX_CHARACTERS + 2).rstrip("\n")
    else:
        word = getpass.getpass("Passphrase: ")
        if twice and getpass.getpass("Again: ") != word:
            raise ConfigError("the two passphrases differ; try again")
    if not word or len(word) > MAX_CHARACTERS:
        raise ConfigError(f"no passphrase of 1 to {MAX_CHARACTERS} characters is given; type it, or pipe one line")
    return word.encode()
