"""What a person sees: tables and progress bars. The one door to rich.

Output to a terminal fits its width; piped output is never cut, and has no bar.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence

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
