"""What a person sees: lines, tables and progress bars. The one door to the terminal, and to rich.

Output to a terminal fits its width; piped output is never cut, and has no bar. Names, states and
logs may be written by strangers: every character that does not print is escaped here.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from skinjob.words import pluralize

if TYPE_CHECKING:
    from rich.text import Text

PIPE_WIDTH = 400  # columns; a pipe has no width, and a cut table is useless to grep


def escape_unencodable() -> None:
    """Makes stdout and stderr escape what their encoding lacks, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(*lines: str, is_error: bool = False, colour: str = "", keeps: str = "") -> None:
    """Prints lines to stdout, or to stderr where *is_error*; without any, an empty line.

    A line break in a line is escaped, too: no value can pretend to be a line of its own. The
    characters in *keeps* are not escaped. On a terminal the first word has the *colour*.
    """
    text = "\n".join(shown(line, keeps) for line in lines)
    stream = sys.stderr if is_error else sys.stdout
    if not colour or not stream.isatty():
        print(text, file=stream, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    coloured = Text(text)
    coloured.stylize(colour, 0, len(text.split(" ", 1)[0]))
    Console(highlight=False, file=stream).print(coloured, soft_wrap=True)


def say_as_is(text: str) -> None:
    """Prints a text to stdout byte for byte: JSON, help, and scripts for a shell."""
    print(text, flush=True)


def ask(question: str) -> bool:
    """Asks a question at the terminal and returns whether the answer is yes."""
    return click.confirm(shown(question))


class StatusLine:
    """One line on stderr that says how work stands; on a terminal it is drawn over itself."""

    def __init__(self) -> None:
        self._words = ""

    def show(self, line: str, words: str) -> None:
        """Writes the line over the last one; in a pipe below it, where *words* have changed."""
        line = shown(line)
        if sys.stderr.isatty():
            room = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{line[:room]}", end="", file=sys.stderr, flush=True)
        elif words != self._words:
            print(line, file=sys.stderr, flush=True)
        self._words = words

    def clear(self) -> None:
        """Removes the line from a terminal."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def print_box(text: str) -> None:
    """Prints a sentence to stdout, in a box where that is a terminal, and an empty line."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.panel import Panel
        from rich.text import Text

        Console(highlight=False).print(Panel.fit(Text(shown(text)), border_style="dim"))
    else:
        say(text)
    say()


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[str] = ()
) -> None:
    """Prints a plain table to stdout: the first column to the left, the others to the right.

    Columns named in *words* hold words: they are to the left, and alone are broken into lines.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, name in enumerate(columns):
        is_left = not number or name in words
        table.add_column(
            name,
            justify="left" if is_left else "right",
            overflow="fold",
            no_wrap=bool(words) and name not in words,
        )
    for row in rows:
        table.add_row(*map(shown, row))
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    Console(highlight=False, markup=False, emoji=False, width=width).print(table)
    sys.stdout.flush()


@contextlib.contextmanager
def progress(label: str, total: int, *, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Yields a function to call with the units done so far; a bar is shown on a terminal only.

    *unit* is "bytes" for a transfer (shown as MB and MB/s), anything else is counted as it is.
    """
    if not sys.stderr.isatty():
        yield _silent
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    counts = (
        [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    )
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *counts,
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(shown(label), total=total)
        yield lambda done: bar.update(task, completed=done)


def _silent(done: int) -> None:
    """Draws nothing."""


def shown(text: str, keeps: str = "") -> str:
    """Returns a text as it is shown in a line: what does not print, and is not in *keeps*, escaped.

    Names of files may hold line breaks, colours of a terminal, and bytes that are no text. A text
    that was escaped already stays as it is.

    >>> print(shown("a b\\n.jpg"))
    a b\\n.jpg
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keeps else repr(c)[1:-1] for c in text)


def own_command() -> str:
    """Returns the command as it was typed, to be pasted with other options behind it."""
    return shlex.join(["skinjob", *sys.argv[1:]])


def width() -> int | None:
    """Returns the columns of the terminal that stdout goes to; None where it goes to none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_sentence(text: str) -> None:
    """Prints a sentence to stdout; on a terminal broken between words where it is too long."""
    say(*wrapped(text, width(), hanging=""))


def wrapped(text: str, columns: int | None, *, indent: str = "", hanging: str = "  ") -> list[str]:
    """Returns a sentence in lines of no more than *columns*; in one where that is None.

    Lines are broken between words: paths and commands stay whole, to be copied. The first begins
    with *indent*, those after it with *hanging*.

    >>> wrapped("see runs/a-long/path", 8)
    ['see', '  runs/a-long/path']
    """
    text = shown(text)
    if columns is None:
        return [indent + text]
    lines = textwrap.wrap(
        text,
        columns,
        initial_indent=indent,
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines or [""]


counted = pluralize  # the name that some modules still use


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[str]
) -> list[str]:
    """Returns a header and a line for each row; columns in *words* are to the left, others right.

    Cells are as `shown` returns them: escaped later, they would push the next column away.
    A thousand rows take some milliseconds, of rich's table a second.

    >>> table_lines(("run", "epoch"), [("bs32", "1/20"), ("bs1024", "10/20")], words=("run",))
    ['run     epoch', 'bs32     1/20', 'bs1024  10/20']
    """
    lines = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    is_left = [name in words for name in columns]
    return [
        "  ".join(
            cell.ljust(size) if left else cell.rjust(size)
            for cell, size, left in zip(line, widths, is_left, strict=True)
        ).rstrip()
        for line in lines
    ]


def print_lines(lines: Sequence[str], colours: Mapping[str, str]) -> None:
    """Prints lines to stdout; on a terminal the words in *colours* have theirs."""
    if not lines:
        return
    if not sys.stdout.isatty():
        say(*lines)
        return
    from rich.console import Console

    Console(highlight=False).print(_coloured(lines, colours), soft_wrap=True)


@contextlib.contextmanager
def redrawn(colours: Mapping[str, str]) -> Iterator[Callable[[Sequence[str]], None]]:
    """Yields a function that puts lines where those were that it was last called with.

    For a terminal. The cursor is hidden meanwhile, and what was drawn last is left there.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, redirect_stdout=False) as live:
        yield lambda lines: live.update(_coloured(lines, colours), refresh=True)


def _coloured(lines: Sequence[str], colours: Mapping[str, str]) -> Text:
    """Returns lines as rich prints them, each word of *colours* that a line has in its colour."""
    from rich.text import Text

    text = Text("\n".join(map(shown, lines)), no_wrap=True, overflow="crop")
    for word, colour in colours.items():
        text.highlight_regex(rf"(?m)\b{word}\b", colour)
    return text


def tell_waiting(lock: Path) -> None:
    """Says on stderr that another process of the user's has to end first."""
    words = f"waiting for another submit, cancel or clean of yours (it holds {lock})"
    print(shown(words), file=sys.stderr, flush=True)
