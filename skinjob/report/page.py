"""The report as one HTML file that can be mailed: its pictures are inside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from skinjob.console import shown
from skinjob.files import write_text
from skinjob.report.findings import known_state, positive_class
from skinjob.report.tables import SweepTable
from skinjob.report.text import complete

DIGEST_DIGITS = 12  # enough to tell files apart by eye; sweep.json has all 64

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
       color: #111; background: #fff; max-width: 78rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #bbb;
     overflow-wrap: anywhere; }
.notice { background: #f3f5f8; border: 1px solid #b8c2d0; border-radius: .3rem;
          padding: .5rem .8rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .35rem; text-align: right; vertical-align: bottom; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 2px solid #111; line-height: 1.2; }
tbody td { border-bottom: 1px solid #ccc; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .5rem 0; }
dt { color: #555; }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; }
figure img { width: 100%; max-width: 48rem; height: auto; display: block; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 36rem), 1fr));
          column-gap: 2rem; }
p, ul, dl { max-width: 52rem; }
figcaption, footer { font-size: .875rem; color: #333; }
figcaption { margin-bottom: .25rem; }
ul { padding-left: 1.2rem; }
li { margin: .25rem 0; overflow-wrap: anywhere; }
footer { margin-top: 2rem; border-top: 1px solid #bbb; padding-top: .5rem; }
@media (max-width: 30rem) {
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .4rem; }
}
@media print {
  body { font-size: 10pt; max-width: none; padding: 0; }
  figure, table, dl { break-inside: avoid; }
  h2 { break-after: avoid; }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .25rem; }
  .wide { overflow: visible; }
}
"""


@dataclass(frozen=True)
class Picture:
    """A picture in the report's folder, in several formats."""

    caption: str
    description: str
    """Says in words what the picture shows, to whoever cannot see it."""
    files: Sequence[Path]
    copies: Sequence[Path] = ()
    """The same files under another name."""


def write_page(
    file: Path,
    tables: Sequence[SweepTable],
    notice: str,
    summary: pd.DataFrame,
    missing: Sequence[str],
    notes: Sequence[str],
    comparisons: Sequence[Picture],
    batches: Sequence[Picture],
) -> None:
    """Writes the page: the notice, numbers, pictures (comparisons first), then what was run."""
    title = "Batch sizes compared: " + ", ".join(table.sweep.name for table in tables)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="notice">{escape(notice)}</p>' if notice else "",
        _html_table(*complete(summary)),
        _html_list(notes),
        _missing(missing),
        "".join(map(_figure, comparisons)),
        f'<div class="beside">\n{"".join(map(_figure, batches))}</div>',
        "<h2>How to read it</h2>",
        _html_list(_reading(tables)),
        *map(_what_was_run, tables),
        "<footer>Research software, not a medical device. Its numbers hold for these test images "
        'and support no diagnosis.<br>The same data: <a href="summary.csv">summary.csv</a>, '
        '<a href="metrics.csv">metrics.csv</a> (every epoch of every run).</footer>',
    ]
    write_text(file, _document(title, "\n".join(part for part in body if part)))


def escape(text: str) -> str:
    """Returns a text for the page, what does not print escaped as it is in a terminal."""
    return html.escape(shown(text, keeps="\n"))


def _document(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _missing(missing: Sequence[str]) -> str:
    return f"<h2>Missing</h2>\n{_html_list(missing)}" if missing else ""


def _figure(picture: Picture) -> str:
    """Returns a picture with its SVG inside, and links to its files for use elsewhere."""
    svg = next(file for file in picture.files if file.suffix == ".svg")
    inside = base64.b64encode(svg.read_bytes()).decode("ascii")
    links = " · ".join(
        f'<a href="{escape(quote(file.name))}">{escape(file.suffix[1:].upper())}</a>'
        for file in picture.files
    )
    return (
        f"<figure>\n<figcaption>{escape(picture.caption)} ({links})</figcaption>\n"
        f'<img src="data:image/svg+xml;base64,{inside}" alt="{escape(picture.description)}">\n'
        "</figure>\n"
    )


def _reading(tables: Sequence[SweepTable]) -> list[str]:
    """Returns what each number of the summary is, and what it is not."""
    return [
        "Numbers are those of the last epoch. With several seeds they are means over the runs that "
        "reached it, and sd is the standard deviation over these runs.",
        "The 95 % interval (Wilson) says how far the accuracy could be off for the number of test "
        "images alone. All batch sizes see the same test images, so that intervals may overlap "
        "although batch sizes differ.",
        "The best epoch was found by looking at the test images: its accuracy flatters, and is no "
        "estimate for new images.",
        *(
            f"Sensitivity, specificity and AUC take “{name}” as the positive class{where}."
            for name, where in _positives(tables)
        ),
        "Change per epoch is the mean absolute change of test accuracy from one epoch to the next, "
        "in percentage points, over all epochs. It includes the climb of the first ones, which "
        "takes longer with larger batches; stability is therefore judged on the second half.",
        "Time is over all runs of a row. The runs of a job share the time that features took, and "
        "who finds them computed already is faster for it: times do not compare batch sizes.",
        "All pictures have the same axes for the same quantity.",
    ]


def _positives(tables: Sequence[SweepTable]) -> list[tuple[str, str]]:
    """Returns each positive class, and where there are several, the sweeps that have it."""
    sweeps: dict[str, list[str]] = {}
    for table in tables:
        sweeps.setdefault(positive_class(table), []).append(table.sweep.name)
    is_one = len(sweeps) == 1
    return [(name, "" if is_one else f" in {', '.join(of)}") for name, of in sweeps.items()]


def _what_was_run(table: SweepTable) -> str:
    info = table.info
    weights, images = info.get("weights", {}), info.get("images", {})
    facts = {
        "sweep": table.sweep.name,
        "submitted": info.get("created_utc"),
        "recipe": _pairs(info["recipe"], leave_out=("data", "weights")),
        "lr": ", ".join(str(lr) for lr in info.get("lrs", [])),
        "seeds": _ranges(info.get("seeds", [])),
        "backbone": weights.get("architecture"),
        "weights": weights.get("source") or weights.get("path"),
        "weights SHA-256": _short(weights.get("sha256")),
        "images": images.get("root"),
        "images' fingerprint": _short(images.get("fingerprint")),
        **{f"images, {split}": _counts(counts) for split, counts in table.counts.items()},
        "images skipped": len(images.get("skipped", [])),
        "device": ", ".join(_devices(table)),
        "versions": _pairs(info.get("versions", {})),
    }
    items = "\n".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in facts.items()
        if value
    )
    return f"<h2>What was run</h2>\n<dl>\n{items}\n</dl>"


def _ranges(numbers: Sequence[int]) -> str:
    """Returns numbers as --seeds takes them.

    >>> _ranges([0, 1, 2, 3, 7, 8])
    '0-3, 7, 8'
    """
    # Numbers in a row have one difference to their places.
    rows = [
        [number for _, number in row]
        for _, row in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ]
    parts = [[f"{row[0]}-{row[-1]}"] if len(row) > 2 else map(str, row) for row in rows]
    return ", ".join(chain.from_iterable(parts))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _devices(table: SweepTable) -> list[str]:
    """Returns each device and precision that a run of the sweep worked with."""
    states = [known_state(run) for run in table.sweep.runs()]
    return sorted({f"{s.device} ({s.precision})" for s in states if s and s.device})


def _pairs(values: dict[str, Any], leave_out: Sequence[str] = ()) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in values.items()
        if name not in leave_out
    )


def _short(digest: str | None) -> str:
    return f"{digest[:DIGEST_DIGITS]}…" if digest else ""


def _html_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(c).replace(chr(10), "<br>")}</th>' for c in columns)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _html_list(lines: Sequence[str]) -> str:
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>\n{items}\n</ul>" if lines else ""
