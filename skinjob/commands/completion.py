"""`skinjob completion`: lets the Tab key complete commands, options, sweeps and runs."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from skinjob.commands.help import TaskCommand
from skinjob.console import print_unescaped, say

INSTALL = {
    "bash": "skinjob completion bash > ~/.skinjob-completion && "
    "echo '. ~/.skinjob-completion' >> ~/.bashrc",
    "zsh": "skinjob completion zsh > ~/.skinjob-completion && "
    "echo 'autoload -Uz compinit && compinit; . ~/.skinjob-completion' >> ~/.zshrc",
    "fish": "skinjob completion fish > ~/.config/fish/completions/skinjob.fish",
}
"""Commands that load the script in every new shell, from a file: starting Python takes longer."""


@click.command(cls=TaskCommand)
@click.argument(
    "shell", required=False, type=click.Choice(tuple(INSTALL)), metavar=f"[{'|'.join(INSTALL)}]"
)
@click.pass_context
def completion(ctx: click.Context, shell: str | None) -> None:
    """Print a script for completion with the Tab key.

    It completes commands, options, sweeps and runs. The default is the shell that you use. The last
    line of the script says how to load it in every new shell.

    \b
    Example:
      eval "$(skinjob completion)"
    """
    chosen = shell or _own_shell()
    print_unescaped(completion_script(ctx.find_root().command, chosen))
    say(f"# in every new shell: {INSTALL[chosen]}")


def completion_script(cli: click.Command, shell: str) -> str:
    """Returns the script for a shell; the script asks skinjob for the possible words."""
    script = get_completion_class(shell)
    assert script is not None, shell  # click knows all of INSTALL
    return script(cli, {}, "skinjob", "_SKINJOB_COMPLETE").source().strip()


def _own_shell() -> str:
    """Returns the user's shell; bash if skinjob has no script for that shell."""
    name = Path(os.environ.get("SHELL", "")).name
    return name if name in INSTALL else "bash"
