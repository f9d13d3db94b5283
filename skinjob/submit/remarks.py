"""What submit finds out about the images, and says before the queue."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from skinjob.console import printable
from skinjob.data.audit import TURNS, Pair, Shortcut, leaked, near_pairs
from skinjob.data.images import ImageSet
from skinjob.words import pluralize

MOST_TURNED, MOST_COMPARED = 20_000, 100_000
"""Images whose copies submit looks for: turned and mirrored ones, too, and only upright ones. The
time grows with the square: here and there, about as long as reading the images."""
UNKNOWN = f"near copies are not known: over {MOST_COMPARED:,} images, or too many that look alike"


class NearCopies(NamedTuple):
    """Pairs of near copies, by their positions in the image set; None if they are not known."""

    in_train: tuple[Pair, ...] | None
    """A validation split rests on these, so test images have no part in them."""
    everywhere: tuple[Pair, ...] | None


def find_copies(images: ImageSet) -> NearCopies:
    """Returns the near copies among images that were scanned here."""
    in_train = _pairs_between(images, "train", "train")
    others = [_pairs_between(images, split, "test") for split in ("train", "test")]
    if in_train is None or None in others:
        return NearCopies(in_train, None)
    return NearCopies(in_train, sum(filter(None, others), in_train))


def _pairs_between(images: ImageSet, first: str, second: str) -> tuple[Pair, ...] | None:
    """Returns the near copies between two splits; None if there are too many images or pairs."""
    num = sum(len(images.split(split)) for split in {first, second})
    if images.sketches is None or num > MOST_COMPARED:
        return None
    turns = TURNS if num <= MOST_TURNED else TURNS[:1]
    pairs, is_complete = near_pairs(images, turns=range(len(turns)), splits=(first, second))
    return tuple(pairs) if is_complete else None


def remarks(
    images: ImageSet, copies: Sequence[Pair] | None, reached: Shortcut | None
) -> list[tuple[str, str]]:
    """Returns remarks on the images for the user: labels and sentences."""
    lines = []
    if images.skipped:
        first, num = images.skipped[0], pluralize(len(images.skipped), "faulty image")
        lines.append(("skipped", f"{num} (first: {printable(first.path)}: {first.fault})"))
    if images.flat:
        verb = "hold" if len(images.flat) > 1 else "holds"
        num = pluralize(len(images.flat), "image")
        words = f"{num} {verb} a single grey level, or nearly (first: {printable(images.flat[0])})"
        lines.append(("note", f"{words}: there is nothing to see in it"))
    for what, where, so, repeated in (
        ("test image", "in train too", "the test accuracy is too high", images.in_train_too()),
        ("image", "in two classes", "a label is wrong", images.in_two_classes()),
    ):
        if repeated:
            verb, num = "are" if len(repeated) > 1 else "is", pluralize(len(repeated), what)
            path = printable(repeated[0].path)
            words = f"{num} {verb} {where}, byte for byte (first: {path}): {so}"
            lines.append(("note", words))
    return [*lines, *_audit_remarks(images, copies, reached)]


def _audit_remarks(
    images: ImageSet, copies: Sequence[Pair] | None, reached: Shortcut | None
) -> list[tuple[str, str]]:
    """Returns the short form of `skinjob audit`, for images that were scanned here."""
    if reached is None:
        return []
    lines = [("shortcut", str(reached))]
    if copies is None:
        lines.append(("note", UNKNOWN))
    elif near := leaked(images, copies):
        verb = "are" if len(near) > 1 else "is"
        num, path = pluralize(len(near), "test image"), printable(near[0].path)
        words = f"{num} {verb} nearly the same as a training image (first: {path})"
        fix = f"skinjob audit {printable(shlex.quote(str(images.root)))}"
        lines.append(("note", f"{words}: {fix}"))
    return lines
