"""Numbers, times and lists as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta


def pluralize(number: int, noun: str) -> str:
    """Returns a number and its noun, with a thousands separator.

    >>> pluralize(2, "image"), pluralize(1, "image"), pluralize(52_800, "image")
    ('2 images', '1 image', '52,800 images')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def counts_text(counts: Mapping[str, int]) -> str:
    """Returns numbers with the names of what was counted.

    >>> counts_text({"benign": 480, "malignant": 400})
    '480 benign, 400 malignant'
    """
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def list_first(
    items: Sequence[str], most: int = 3, *, separator: str = ", ", noun: str = ""
) -> str:
    """Returns a line with the first *most* items and the number of the others.

    >>> list_first(["a", "b"]), list_first(["a", "b", "c", "d", "e"])
    ('a, b', 'a, b, c and 2 more')
    >>> list_first(["No route.", "Bye."], 1, separator="; ", noun="line")
    'No route. and 1 more line'
    """
    num_more = len(items) - most
    text = separator.join(items[:most])
    if num_more <= 0:
        return text
    return f"{text} and {pluralize(num_more, f'more {noun}') if noun else f'{num_more:,} more'}"


def duration(seconds: float) -> str:
    """Returns a time in its largest unit.

    >>> duration(42.4), duration(190), duration(3725)
    ('42 s', '3.2 min', '1 h 02 min')
    """
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 59.95 * 60:
        return f"{seconds / 60:.1f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def clock(seconds: float) -> str:
    """Returns a time in hours, minutes and seconds.

    >>> clock(3725.4)
    '1:02:05'
    """
    return str(timedelta(seconds=round(seconds)))
