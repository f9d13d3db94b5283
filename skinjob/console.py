"""What a person sees: tables and progress bars. The one door to rich.

Output to a terminal fits its width; piped output is never cut, and has no bar.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

PIPE_WIDTH = 400  # columns; a pipe has no width, and a cut table is useless to grep


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
        table.add_row(*row)
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    Console(highlight=False, markup=False, width=width).print(table)


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
    columns = [TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)


def _silent(done: int) -> None:
    """Draws nothing."""


def shown(text: str) -> str:
    """Returns a text as it is shown in a line: what does not print is escaped.

    Names of files may hold line breaks, colours of a terminal, and bytes that are no text.

    >>> print(shown("a b\\n.jpg"))
    a b\\n.jpg
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def width() -> int | None:
    """Returns the columns of the terminal that stdout goes to; None where it goes to none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_sentence(text: str) -> None:
    """Prints a sentence to stdout; on a terminal broken between words where it is too long."""
    print("\n".join(wrapped(text, width(), hanging="")))


def wrapped(text: str, columns: int | None, *, indent: str = "", hanging: str = "  ") -> list[str]:
    """Returns a sentence in lines of no more than *columns*; in one where that is None.

    Lines are broken between words: paths and commands stay whole, to be copied. The first begins
    with *indent*, those after it with *hanging*.

    >>> wrapped("see runs/a-long/path", 8)
    ['see', '  runs/a-long/path']
    """
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


def counted(number: int, noun: str) -> str:
    """Returns how many there are, in words.

    >>> counted(2, "image"), counted(1, "image")
    ('2 images', '1 image')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[str]
) -> list[str]:
    """Returns a header and a line for each row; columns in *words* are to the left, others right.

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
    """Prints lines as they are; on a terminal the words in *colours* have theirs."""
    if not lines:
        return
    if not sys.stdout.isatty():
        sys.stdout.write("".join(f"{line}\n" for line in lines))
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

    text = Text("\n".join(lines), no_wrap=True, overflow="crop")
    for word, colour in colours.items():
        text.highlight_regex(rf"(?m)\b{word}\b", colour)
    return text


def tell_waiting(lock: Path) -> None:
    """Says on stderr that another process of the user's has to end first."""
    words = f"waiting for another submit, cancel or clean of yours (it holds {lock})"
    print(shown(words), file=sys.stderr, flush=True)
