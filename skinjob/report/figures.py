"""A figure of the report: one picture with one message, and the numbers that it draws."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """A picture for the page and for files beside it."""

    name: str
    """The name of its files: name.svg, name.png and name.csv. No two figures share it."""
    section: str
    """Where the page shows it: comparison, curves, stability, clinical or probabilities."""
    caption: str
    """One sentence: what the picture shows."""
    description: str
    """A text for readers who cannot see it."""
    svg: str
    """The picture as an inline <svg>; every id begins with the name."""
    columns: list[str]
    rows: list[list[str]]
    """The numbers behind it, as name.csv has them."""
    png: bytes = field(default=b"", repr=False)
