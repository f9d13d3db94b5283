"""Lines, tables and progress bars for people. Only this module writes to the terminal or uses rich.

Output to a terminal fits its width. Piped output is never cut and has no bars. Names, states and
logs may come from other people, so this module escapes every unprintable character.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import OverflowMethod
    from rich.text import Text

MIN_WRAPPED = 12  # characters of a column whose cells are wrapped


def escape_unencodable() -> None:
    """Makes stdout and stderr escape characters that their encoding lacks, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(*lines: str, is_error: bool = False, colour: str = "", keeps: str = "") -> None:
    """Prints lines to stdout, or to stderr if *is_error*; without lines, an empty line.

    A line break inside a line is escaped, because a value must not look like another line.
    Characters in *keeps* are not escaped. On a terminal the first word has the *colour*.
    """
    text = "\n".join(printable(line, keeps) for line in lines)
    if colour and not is_error:
        print_lines([text], {"^" + re.escape(text.split(" ", 1)[0]): colour})
    else:
        print(text, file=sys.stderr if is_error else sys.stdout, flush=True)


def print_unescaped(text: str) -> None:
    """Prints a text to stdout unchanged: JSON, help, scripts for a shell."""
    print(text, flush=True)


def ask(question: str) -> bool:
    """Asks a question at the terminal. Returns whether the answer is yes."""
    return click.confirm(printable(question))


class StatusLine:
    """A line on stderr about the progress of work; a terminal shows only the newest."""

    def __init__(self) -> None:
        self._state = ""

    def show(self, line: str, state: str) -> None:
        """Replaces the line on a terminal; a pipe gets a new line if *state* has changed."""
        line = printable(line)
        if sys.stderr.isatty():
            columns = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{line[:columns]}", end="", file=sys.stderr, flush=True)
        elif state != self._state:
            print(line, file=sys.stderr, flush=True)
        self._state = state

    def clear(self) -> None:
        """Removes the line from a terminal."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def print_box(text: str) -> None:
    """Prints a sentence and an empty line; a terminal shows the sentence in a box."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.panel import Panel
        from rich.text import Text

        Console(highlight=False).print(Panel.fit(Text(printable(text)), border_style="dim"))
    else:
        say(text)
    say()


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Collection[str] = (),
    drop: Sequence[str] = (),
    wrap: str = "",
) -> None:
    """Prints a table to stdout, see `table_lines`; a terminal gets it as wide as it is."""
    width = terminal_width()
    print_lines(table_lines(columns, rows, width=width, left=left, drop=drop, wrap=wrap), {})


@contextlib.contextmanager
def progress(label: str, total: int, *, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Yields a function that takes the number of finished units. Only a terminal shows the bar.

    The *unit* "bytes" is shown as MB and MB/s.
    """
    if not sys.stderr.isatty():
        yield lambda done: None
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
        task = bar.add_task(printable(label), total=total)
        yield lambda done: bar.update(task, completed=done)


def printable(text: str, keeps: str = "") -> str:
    """Returns a text with escapes for all unprintable characters, except for those in *keeps*.

    File names may contain line breaks, terminal colours, and bytes that are not text. Escaping a
    text twice changes nothing.

    >>> print(printable("a b\\n.jpg"))
    a b\\n.jpg
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keeps else repr(c)[1:-1] for c in text)


def typed_command() -> str:
    """Returns the command that the user typed, ready to be pasted."""
    return shlex.join(["skinjob", *sys.argv[1:]])


def with_typed_options(fix: str) -> str:
    """Returns a fix that changes options of the typed command, with its other options kept."""
    command, *typed = sys.argv[1:] or [""]

    def complete(match: re.Match[str]) -> str:
        changed, kept, is_value = set(re.findall("--[a-z-]+", match[1])), [], False
        for word in typed:
            flag, equals, _ = word.partition("=")
            if not is_value and flag not in changed:
                kept.append(word)
            is_value = flag in changed and not equals
        return f"{shlex.join(['skinjob', command, *kept])} {match[1]}"

    return re.sub(f"skinjob {re.escape(command)} (--[^;#]*)", complete, fix)


def terminal_width() -> int | None:
    """Returns the number of columns of the terminal; None if stdout is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_sentence(text: str) -> None:
    """Prints a sentence to stdout; a terminal gets it in lines that fit."""
    say(*wrapped(text, terminal_width(), hanging=""))


def wrapped(text: str, columns: int | None, *, indent: str = "", hanging: str = "  ") -> list[str]:
    """Returns a sentence in lines of at most *columns* characters; for None in a single line.

    Lines are broken only between words, because paths and commands must stay whole for copying.
    The first line starts with *indent*, the others with *hanging*.

    >>> wrapped("see runs/a-long/path", 8)
    ['see', '  runs/a-long/path']
    """
    text = printable(text)
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


def table_lines(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None = None,
    left: Collection[str] = (),
    drop: Sequence[str] = (),
    wrap: str = "",
) -> list[str]:
    """Returns the lines of a table, escaped, and of at most *width* characters if possible.

    The first column and those in *left* are aligned to the left, the others to the right. A heading
    may have line breaks. A table that is too wide loses the columns in *drop*, one by one; then the
    cells of the column *wrap* are wrapped. 1,000 rows take 5 ms here, and a second with rich.

    >>> table_lines(("run", "epoch"), [("bs32", "1/20"), ("bs1024", "10/20")])
    ['run     epoch', 'bs32     1/20', 'bs1024  10/20']
    """
    cells = {name: [printable(row[place]) for row in rows] for place, name in enumerate(columns)}
    sizes = {name: max(map(len, [*name.split("\n"), *cells[name]])) for name in columns}
    for name in drop:
        if width is None or table_width(sizes) <= width:
            break
        sizes.pop(name, None)
    breaks: dict[str, int] = {}
    if width is not None and wrap in sizes and (excess := table_width(sizes) - width) > 0:
        sizes[wrap] = breaks[wrap] = max(MIN_WRAPPED, sizes[wrap] - excess)
    height = max(name.count("\n") for name in sizes)
    blocks = [[("\n" * (height - name.count("\n")) + name).split("\n") for name in sizes]]
    for row in zip(*(cells[name] for name in sizes), strict=True):
        named = zip(sizes, row, strict=True)
        blocks.append([wrapped(cell, breaks.get(name), hanging="") for name, cell in named])
    aligned = [str.ljust if name in (columns[0], *left) else str.rjust for name in sizes]
    return [
        "  ".join(map(lambda align, *cell: align(*cell), aligned, line, sizes.values())).rstrip()
        for block in blocks
        for line in zip_longest(*block, fillvalue="")
    ]


def table_width(widths: Mapping[str, int]) -> int:
    """Returns the width of a table, from the widths of its columns."""
    return sum(widths.values()) + 2 * (len(widths) - 1)


def print_lines(lines: Sequence[str], colours: Mapping[str, str]) -> None:
    """Prints lines to stdout; a terminal shows the words in *colours* in their colour."""
    if not lines:
        return
    if not sys.stdout.isatty():
        say(*lines)
        return
    from rich.console import Console

    Console(highlight=False).print(_coloured(lines, colours), soft_wrap=True)


@contextlib.contextmanager
def replacing_lines(colours: Mapping[str, str]) -> Iterator[Callable[[Sequence[str]], None]]:
    """Yields a function that prints lines to a terminal in place of the lines of its last call.

    The cursor is hidden until the end; the last lines stay.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, redirect_stdout=False) as live:
        yield lambda lines: live.update(_coloured(lines, colours, overflow="crop"), refresh=True)


def _coloured(
    lines: Sequence[str], colours: Mapping[str, str], overflow: OverflowMethod = "ignore"
) -> Text:
    """Returns lines for rich, with the words of *colours* in their colour."""
    from rich.text import Text

    text = Text("\n".join(map(printable, lines)), no_wrap=True, overflow=overflow)
    for word, colour in colours.items():
        text.highlight_regex(rf"\b{word}\b", colour)
    return text


def print_lock_wait(lock: Path) -> None:
    """Prints to stderr that another command of the user must end first."""
    say(f"waiting for another submit, cancel or clean of yours (it holds {lock})", is_error=True)
