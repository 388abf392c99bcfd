"""``completion``: prints the script by which a shell completes this program's commands, options and values."""

from __future__ import annotations

from typing import Annotated

from click.shell_completion import BashComplete, FishComplete, ZshComplete

from intermediate_server.cli import commands
from intermediate_server.errors import ConfigError

PROGRAM = "intermediate-server"
VARIABLE = "_INTERMEDIATE_SERVER_COMPLETE"
"""The variable by which click knows that a shell asks for completions."""
SHELLS = {each.name: each for each in (BashComplete, ZshComplete, FishComplete)}


def register(app: commands.Group) -> None:
    """Add the command of this module."""

    @app.command("completion")
    def completion(
        shell: Annotated[str, commands.Argument(metavar="|".join(SHELLS), help="The shell that is to complete.")],
    ) -> None:
        """Print the script by which a shell completes commands, options and values.

        Write it to the file that your shell reads; the deb and the rpm have done so for all users:

        \b
        bash: ~/.local/share/bash-completion/completions/intermediate-server
        zsh:  _intermediate-server in a directory of $fpath
        fish: ~/.config/fish/completions/intermediate-server.fish
        """
        if shell not in SHELLS:
            raise ConfigError(f"{shell!r} is no shell that can be had; there are {', '.join(SHELLS)}")
        commands.echo(SHELLS[shell](app, {}, PROGRAM, VARIABLE).source())
