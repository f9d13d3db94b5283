"""Writes docs/commands.md: what `skinjob COMMAND --help` prints, for every command.

`make docs` calls it; `make check` fails where the page differs from the code.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from click.testing import CliRunner

from skinjob.cli import cli
from skinjob.commands.help import COMMANDS

PAGE = Path(__file__).parent / "commands.md"
WIDTH = 88
HEAD = """\
# Commands

What `skinjob COMMAND --help` prints. This page is made from the code, by `make docs`.

Each option of `submit` can also be set by a variable, `SKINJOB_SUBMIT_` and its name in capitals
(`SKINJOB_SUBMIT_BATCH_SIZES=32,64`), or in a file: see [your-site.md](your-site.md).
`doctor` and `config` heed the same variables and files.
"""


def reference() -> str:
    """Returns the text of the page, with the defaults that are built in."""
    parts = [HEAD, _block(_help([]))]
    for task, names in COMMANDS.items():
        parts.append(f"## {task}\n")
        for name in filter(cli.commands.get, names):
            parts += [f"### skinjob {name}\n", _block(_help([name]))]
    return "\n".join(parts)


def _help(words: list[str]) -> str:
    """Returns what help says where no file and no variable sets a default."""
    unset: dict[str, str | None] = {name: None for name in os.environ if "SKINJOB" in name}
    before = Path.cwd()
    with TemporaryDirectory() as empty:
        os.chdir(empty)
        result = CliRunner().invoke(
            cli,
            [*words, "--help"],
            prog_name="skinjob",
            env={**unset, "XDG_CONFIG_HOME": empty},
            terminal_width=WIDTH,
            catch_exceptions=False,
        )
        os.chdir(before)
    return result.output


def _block(text: str) -> str:
    return f"```text\n{text}```\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
