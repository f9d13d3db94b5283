"""`skinjob audit`: copies, empty images and shortcuts in a folder of images."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skinjob.commands.arguments import find_sweep, runs_option
from skinjob.commands.help import TaskCommand
from skinjob.console import print_table, print_unescaped, printable, say
from skinjob.errors import ImagesError, RunError
from skinjob.words import list_first, pluralize

if TYPE_CHECKING:
    from skinjob.data.audit import Audit, Pair
    from skinjob.sweeps.layout import Sweep

MOST_SHOWN = 20  # pairs in the terminal


@click.command(cls=TaskCommand)
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--sweep",
    metavar="SWEEP",
    help="Also show pairs that are alike by the features of this sweep of the same images.",
)
@runs_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, with all pairs.")
@click.option(
    "--contact-sheet",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="Write a page with both images of each pair. It may contain patient data.",
)
def audit(
    data: Path, sweep: str | None, runs: Path, as_json: bool, contact_sheet: Path | None
) -> None:
    """Find copies, empty images and shortcuts in a folder of images.

    A copy may be resized, saved again, brighter, shifted, mirrored or turned. A shortcut is a class
    that file size, image size, border or mean colour give away: read every accuracy against it.

    \b
    Example:
      skinjob audit skin_cancer
      skinjob audit skin_cancer --contact-sheet pairs.html
      skinjob audit skin_cancer --sweep my-sweep --contact-sheet pairs.html
    """
    from skinjob.data.audit import audit as audit_images
    from skinjob.data.scan import scan
    from skinjob.report.contact import write_contact_sheet

    if contact_sheet and contact_sheet.suffix != ".html":
        raise click.BadParameter(
            f"{contact_sheet}: its name must end in .html", param_hint="'--contact-sheet'"
        )
    try:
        result = audit_images(scan(data, skips_bad=True))
    except ImagesError as error:
        error.fix = error.fix.replace("skinjob submit --data", "skinjob audit")
        raise
    alike = _look_alikes(result, find_sweep(sweep, runs)) if sweep else []
    if contact_sheet:
        write_contact_sheet(contact_sheet, result, alike)
    if as_json:
        print_unescaped(json.dumps(_as_json(result, alike), indent=2))
        return
    for label, words in _lines(result):
        say(f"{label:<10}{words}")
    _print_pairs(result)
    if alike:
        say("", "Alike by features. Look at them: they are not counted as copies.")
        paths = [file.path for file in result.images.files]
        rows = [(paths[p.first], paths[p.second], f"{p.alike:.3f}") for p in alike]
        print_table(("image", "other", "cosine"), rows, left=("other",))
    if contact_sheet:
        say("", f"open: {contact_sheet}")
    elif result.pairs or alike:
        also = f" --sweep {shlex.quote(sweep)}" if sweep else ""
        say("", f"next: skinjob audit {shlex.quote(str(data))}{also} --contact-sheet pairs.html")


def _look_alikes(audit: Audit, sweep: Sweep) -> list[Pair]:
    """Returns pairs that are alike by a sweep's features. Raises: RunError if it has none."""
    from skinjob.data.images import read_index
    from skinjob.data.lookalikes import MOST_IMAGES, look_alikes

    info, views = sweep.info(), sweep.views_folder
    index = read_index(sweep.images_file, audit.images.root, info.images.classes)
    pairs = look_alikes(audit, index, views, info.weights.sha256, MOST_SHOWN)
    if pairs is None:
        raise RunError(
            f"{views} has no features of these images for {sweep.folder}, or over {MOST_IMAGES:,}",
            f"skinjob audit {shlex.quote(str(audit.images.root))}   # without --sweep",
        )
    return pairs


def _lines(audit: Audit) -> Iterator[tuple[str, str]]:
    """Yields what the terminal shows above the pairs: labels and sentences."""
    from skinjob.data.audit import EXACT

    images, test = audit.images, audit.images.split("test")
    for split, counts in images.counts().items():
        total = sum(counts.values())
        parts = [f"{num:,} {name} ({100 * num / total:.1f} %)" for name, num in counts.items()]
        yield split, ", ".join(parts)
    if images.skipped:
        bad = [f"{file.path} ({file.fault})" for file in images.skipped]
        yield "faulty", f"{pluralize(len(bad), 'image')}, left out: {list_first(bad, 1)}"
    sizes = [f"{width} x {height} ({num:,})" for (width, height), num in _sizes(audit)]
    yield "sizes", f"{list_first(sizes, 3)}, in pixels"
    empty = [images.files[place].path for place in audit.empty]
    named = f": {list_first(empty)}" if empty else ""
    yield "empty", f"{pluralize(len(empty), 'image')} with almost nothing in them{named}"
    num_exact = sum(pair.kind == EXACT for pair in audit.pairs)
    copied = sum(map(len, audit.groups))
    yield (
        "copies",
        f"{pluralize(copied, 'image')} in {pluralize(len(audit.groups), 'group')}: "
        f"{pluralize(num_exact, 'pair')} with the same bytes, "
        f"{len(audit.pairs) - num_exact:,} nearly the same"
        + ("" if audit.is_complete else "; too many images look alike, so not all were compared"),
    )
    num_leaked, num_mixed = len(audit.in_train_too()), len(_in_two_classes(audit))
    yield "leaks", f"{num_leaked:,} of {len(test):,} test images have a copy in train"
    if num_mixed:
        yield "labels", f"{pluralize(num_mixed, 'pair')} in two classes: a label is wrong"
    yield "shortcut", str(audit.shortcut)


def _sizes(audit: Audit) -> list[tuple[tuple[int, int], int]]:
    """Returns each image size and its number of images, the most frequent first."""
    assert audit.images.sketches is not None
    sizes = map(tuple, audit.images.sketches["size"].tolist())
    return Counter(sizes).most_common()


def _in_two_classes(audit: Audit) -> list[Any]:
    files = audit.images.files
    return [pair for pair in audit.pairs if files[pair.first].label != files[pair.second].label]


def _print_pairs(audit: Audit) -> None:
    files = audit.images.files
    rows = [
        (files[p.first].path, files[p.second].path, p.kind, str(p.bits), f"{p.alike:.3f}")
        for p in audit.pairs[:MOST_SHOWN]
    ]
    if rows:
        say()
        columns = ("image", "copy", "which is", "bits", "correlation")
        print_table(columns, rows, left=("copy", "which is"), drop=("bits", "correlation"))
    if len(audit.pairs) > MOST_SHOWN:
        say(f"and {pluralize(len(audit.pairs) - MOST_SHOWN, 'more pair')}")


def _as_json(audit: Audit, alike: Sequence[Pair]) -> dict[str, Any]:
    paths = [printable(file.path) for file in audit.images.files]

    def named(pair: Pair) -> dict[str, Any]:
        return {**asdict(pair), "first": paths[pair.first], "second": paths[pair.second]}

    return {
        "images": audit.images.counts(),
        "faulty": [asdict(file) for file in audit.images.skipped],
        "sizes": [{"width": w, "height": h, "images": num} for (w, h), num in _sizes(audit)],
        "empty": [paths[place] for place in audit.empty],
        "pairs": [*map(named, audit.pairs)],
        "alike_by_features": [*map(named, alike)],
        "is_complete": audit.is_complete,
        "groups": [[paths[place] for place in group] for group in audit.groups],
        "test_in_train": [printable(file.path) for file in audit.in_train_too()],
        "shortcut": asdict(audit.shortcut),
    }
