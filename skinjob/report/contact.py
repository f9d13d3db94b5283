"""The contact sheet of an audit: an HTML file with both images of each pair, to be looked at.

The text and the style are in contact.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from skinjob.data.audit import Audit, Pair, thumbnail
from skinjob.files import write_text
from skinjob.report.templates import filled
from skinjob.words import pluralize

MOST_PAIRS = 300  # on a sheet: 4 MB


def write_contact_sheet(file: Path, audit: Audit, alike: Sequence[Pair]) -> None:
    """Writes the sheet. It names images without their folders, and loads nothing.

    *alike* are pairs that may be copies.

    Raises: ImagesError if an image has changed since the scan.
    """
    images, shown = audit.images, audit.pairs[:MOST_PAIRS]
    places = {place for pair in (*shown, *alike) for place in (pair.first, pair.second)}
    pictures = {
        place: {
            "name": Path(images.files[place].path).name,
            "split": images.files[place].split,
            "class": images.classes[images.files[place].label],
            "jpeg": thumbnail(images, place),
        }
        for place in sorted(places)
    }
    page = filled(
        "contact.html",
        title=f"Copies in {images.root.resolve().name}",
        num_pictures=pluralize(len(pictures), "image"),
        num_pairs=pluralize(len(audit.pairs), "pair"),
        num_more=len(audit.pairs) - len(shown),
        is_complete=audit.is_complete,
        lists=[
            [(pair, pictures[pair.first], pictures[pair.second]) for pair in pairs]
            for pairs in (shown, alike)
        ],
    )
    write_text(file, page)
