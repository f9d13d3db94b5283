"""Lines, areas, dots and texts at places in pixels: as inline SVG for the page, and as PNG.

The SVG is written here because the page needs what matplotlib's lacks: colours that follow a dark
page, a value under the mouse without a script, and ids that differ between figures. matplotlib
paints the same shapes for the PNG. No other module uses matplotlib.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

from skinjob.console import printable


@contextmanager
def no_matplotlib_settings() -> Iterator[None]:
    """Hides the user's settings of matplotlib from its import in the block.

    The import reads MPLBACKEND, and a matplotlibrc in the current folder, at MATPLOTLIBRC or in the
    home folder. A damaged file would stop it.
    """
    names = ("MPLBACKEND", "MATPLOTLIBRC")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    # A handle leads back to a folder even if it was removed or cannot be listed.
    here = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
    try:
        os.chdir("/")
        os.environ["MATPLOTLIBRC"] = os.devnull
        yield
    finally:
        del os.environ["MATPLOTLIBRC"]
        os.environ.update(before)
        os.fchdir(here)
        os.close(here)


with no_matplotlib_settings():
    import matplotlib
    from matplotlib.figure import Figure as Paper
    from matplotlib.lines import Line2D
    from matplotlib.patches import Polygon
    from matplotlib.text import Text
    from matplotlib.transforms import Affine2D, Transform

Points = Sequence[tuple[float, float]]

DEFAULTS: dict[Any, Any] = {
    **{name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"},
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "lines.scale_dashes": False,
    "text.parse_math": False,  # a sweep's name may contain dollar signs
}
PNG_SCALE = 2  # dots of the PNG per pixel of the SVG
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
EM = 0.64  # the mean width of a character of the widest usual font, in its size

# Lightness falls evenly from the first ink to the last, so that a print in grey can be read.
LIGHT = {
    "text": "#111111",
    "soft": "#595959",
    "grid": "#dddddd",
    "0": "#e86f3c",
    "1": "#de5f65",
    "2": "#c43f78",
    "3": "#b52f8c",
    "4": "#9a169f",
    "5": "#7b02a8",
    "6": "#5601a4",
    "7": "#0d0887",
}
DARK = {
    "text": "currentColor",
    "soft": "#aaaaaa",
    "grid": "#444444",
    "0": "#a43a9c",
    "1": "#bf4590",
    "2": "#d5597d",
    "3": "#e66d68",
    "4": "#f28653",
    "5": "#faa441",
    "6": "#fcc63a",
    "7": "#f3f27a",
}
NUM_INKS = 8


def _variables(inks: dict[str, str]) -> str:
    return "".join(f"--ink-{name}:{color};" for name, color in inks.items() if name != "text")


STYLE = (
    f"<style>.figure{{{_variables(LIGHT)}}}"
    f"@media screen and (prefers-color-scheme:dark){{.figure{{{_variables(DARK)}}}}}</style>"
)


@dataclass(frozen=True)
class Shape:
    """A line, an area, a dot or a text."""

    kind: str
    points: Points
    """In pixels, from the upper left corner. A line has a gap where one is NaN."""
    ink: str
    opacity: float = 1.0
    title: str = ""
    """What is shown under the mouse."""
    width: float = 1.0
    """Of a line; of a dot its diameter; of a text its font size."""
    dash: tuple[float, ...] = ()
    marker: str = "o"
    text: str = ""
    anchor: str = "start"
    is_bold: bool = False


class Canvas:
    """A picture that grows by shapes; later shapes are above."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.shapes: list[Shape] = []

    def line(
        self,
        points: Iterable[tuple[float, float]],
        ink: str,
        *,
        width: float = 1.0,
        dash: tuple[float, ...] = (),
        opacity: float = 1.0,
        title: str = "",
    ) -> None:
        """Adds a line."""
        self.shapes.append(Shape("line", list(points), ink, opacity, title, width, dash))

    def area(self, points: Iterable[tuple[float, float]], ink: str, opacity: float) -> None:
        """Adds a filled area."""
        self.shapes.append(Shape("area", list(points), ink, opacity))

    def dot(
        self,
        x: float,
        y: float,
        ink: str,
        *,
        marker: str = "o",
        size: float = 6.0,
        title: str = "",
        opacity: float = 1.0,
    ) -> None:
        """Adds a dot: o, s (square), ^, v (triangles) or D (diamond)."""
        self.shapes.append(Shape("dot", [(x, y)], ink, opacity, title, size, marker=marker))

    def hover(self, x: float, y: float, title: str) -> None:
        """Adds an invisible place that shows *title* under the mouse."""
        self.shapes.append(Shape("hover", [(x, y)], "text", 0.0, title, 12.0))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        anchor: str = "start",
        size: float = 12.0,
        ink: str = "text",
        is_bold: bool = False,
    ) -> None:
        """Adds a text, if it is not empty; *y* is its base line."""
        if not text:
            return
        shape = Shape("text", [(x, y)], ink, width=size, text=printable(text), anchor=anchor)
        self.shapes.append(shape if not is_bold else Shape(**{**vars(shape), "is_bold": True}))

    def svg(self, name: str, title: str, description: str) -> str:
        """Returns the picture for the page; *name* begins every id."""
        key, width, height = id_of(name), f"{self.width:g}", f"{self.height:g}"
        start = (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="figure" role="img" '
            f'aria-labelledby="{key}-title {key}-desc" viewBox="0 0 {width} {height}" '
            f'style="width:100%;max-width:{width}px;height:auto" font-family="{FONT}">'
        )
        heads = [
            f'<title id="{key}-title">{_escaped(title)}</title>',
            f'<desc id="{key}-desc">{_escaped(description)}</desc>',
        ]
        return "\n".join([start, *heads, STYLE, *map(_svg, self.shapes), "</svg>"])

    def png(self) -> bytes:
        """Returns the picture as PNG on white, the same bytes each time."""
        with matplotlib.rc_context(DEFAULTS):
            paper = Paper((self.width / 72, self.height / 72), 72 * PNG_SCALE)
            place = Affine2D().scale(PNG_SCALE, -PNG_SCALE)
            place = place.translate(0, PNG_SCALE * self.height)
            for order, shape in enumerate(self.shapes):
                _paint(paper, shape, place, order)
            file = io.BytesIO()
            paper.savefig(file, format="png", metadata={"Software": None})
        return file.getvalue()


def as_file(svg: str) -> str:
    """Returns an inline SVG as a file of its own: dark on white, with plain colours."""
    svg = svg.replace(STYLE, '<rect width="100%" height="100%" fill="#fff"/>')
    svg = re.sub(r"var\(--ink-(\w+)\)", lambda match: LIGHT[match[1]], svg)
    return svg.replace("currentColor", LIGHT["text"]) + "\n"


def id_of(name: str) -> str:
    """Returns a name as the start of an id; different names give different ids.

    >>> id_of("my sweep-roc")
    'my_20_sweep-roc'
    """
    return re.sub(r"[^A-Za-z0-9-]", lambda match: f"_{ord(match[0]):x}_", name)


def text_width(text: str, size: float = 12.0) -> float:
    """Returns the width of a text in pixels, rather too large than too small."""
    return EM * size * len(text)


def _escaped(text: str) -> str:
    return escape(printable(text))


def _color(ink: str) -> str:
    return "currentColor" if ink == "text" else f"var(--ink-{ink})"


def _svg(shape: Shape) -> str:
    """Returns a shape as an element of SVG."""
    inside = f"<title>{_escaped(shape.title)}</title>" if shape.title else ""
    color = _color(shape.ink)
    faint = f' opacity="{shape.opacity:g}"' if shape.opacity != 1 else ""
    x, y = shape.points[0] if shape.points else (0.0, 0.0)
    if shape.kind == "text":
        anchor = f' text-anchor="{shape.anchor}"' if shape.anchor != "start" else ""
        bold = ' font-weight="bold"' if shape.is_bold else ""
        place = f'x="{x:.1f}" y="{y:.1f}" font-size="{shape.width:g}"'
        text = _escaped(shape.text)
        return f'<text {place} fill="{color}"{anchor}{bold}>{text}</text>'
    if shape.kind == "hover":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill-opacity="0">{inside}</circle>'
    if shape.kind == "line":
        dash = f' stroke-dasharray="{" ".join(f"{d:g}" for d in shape.dash)}"' if shape.dash else ""
        return (
            f'<path d="{_path(shape.points)}" fill="none" stroke="{color}" '
            f'stroke-width="{shape.width:g}" stroke-linejoin="round"{dash}{faint}>{inside}</path>'
        )
    if shape.kind == "area":
        return f'<path d="{_path(shape.points)}Z" fill="{color}"{faint}/>'
    return f'<path d="{_marker(shape)}" fill="{color}"{faint}>{inside}</path>'


def _path(points: Points) -> str:
    """Returns the path through points, with a gap at each NaN."""
    parts: list[str] = []
    before = ("", "")
    for x, y in points:
        if math.isnan(x) or math.isnan(y):
            before = ("", "")
            continue
        here = (f"{x:.1f}".removesuffix(".0"), f"{y:.1f}".removesuffix(".0"))
        if before == ("", ""):
            parts.append(f"M{here[0]} {here[1]}")
        elif here[1] == before[1]:
            parts.append(f"H{here[0]}")
        else:
            parts.append(f"V{here[1]}" if here[0] == before[0] else f"L{here[0]} {here[1]}")
        before = here
    return "".join(parts)


def _marker(shape: Shape) -> str:
    """Returns the path of a dot."""
    (x, y), r = shape.points[0], shape.width / 2
    if shape.marker == "o":
        return f"M{x - r:.1f} {y:.1f}a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0Z"
    corners = {
        "s": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "^": [(0, -1.15), (1.1, 0.9), (-1.1, 0.9)],
        "v": [(0, 1.15), (1.1, -0.9), (-1.1, -0.9)],
        "D": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
    }[shape.marker]
    return _path([(x + r * dx, y + r * dy) for dx, dy in corners]) + "Z"


def _paint(paper: Paper, shape: Shape, place: Transform, order: int) -> None:
    """Adds a shape to matplotlib's figure."""
    color, xs, ys = LIGHT[shape.ink], [x for x, _ in shape.points], [y for _, y in shape.points]
    look: dict[str, Any] = {"transform": place, "alpha": shape.opacity, "zorder": order}
    if shape.kind == "line":
        line = Line2D(xs, ys, color=color, linewidth=shape.width, **look)
        line.set_solid_capstyle("butt")
        if shape.dash:
            line.set_dashes(shape.dash)
        paper.add_artist(line)
    elif shape.kind == "area":
        paper.add_artist(Polygon(shape.points, closed=True, fc=color, lw=0, **look))
    elif shape.kind == "dot":
        paper.add_artist(
            Line2D(xs, ys, color=color, ls="", marker=shape.marker, ms=shape.width, mew=0, **look)
        )
    elif shape.kind == "text":
        sides = {"start": "left", "middle": "center", "end": "right"}
        weight = "bold" if shape.is_bold else "normal"
        font: dict[str, Any] = {
            "ha": sides[shape.anchor],
            "fontsize": shape.width,
            "fontweight": weight,
        }
        paper.add_artist(Text(xs[0], ys[0], shape.text, color=color, va="baseline", **font, **look))
