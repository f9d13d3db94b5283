"""The validation split: training images that are held out, so that choices need no test image.

Which images these are depends on the content of the training images, the fraction and a seed only:
not on names, on the order of files, on the machine, or on test images.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from skinjob.config import FieldError, TrainConfig, options_of
from skinjob.console import printable
from skinjob.data.audit import Pair, linked
from skinjob.data.images import ImageFile, ImageSet, Split
from skinjob.words import pluralize

LARGER = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
"""The fractions that a refusal tries, to name the first that works."""

FIELD = "val_fraction"
Groups = Iterable[Sequence[ImageFile]]


def equal_images(files: Sequence[ImageFile]) -> Groups:
    """Returns the images in groups of equal bytes."""
    groups: dict[str, list[ImageFile]] = {}
    for file in files:
        groups.setdefault(file.sha256, []).append(file)
    return groups.values()


def copies_together(
    images: ImageSet, pairs: Iterable[Pair]
) -> Callable[[Sequence[ImageFile]], Groups]:
    """Returns a function that groups images that are linked by *pairs* or have equal bytes.

    Pairs with an image that it is not given do not count: with test images, they could link two
    training images, and the test images would have a part in the split.
    """
    pairs = list(pairs)

    def grouped(files: Sequence[ImageFile]) -> Groups:
        place = {file.path: number for number, file in enumerate(files)}
        links = [
            (place[first], place[other])
            for first, other in (
                (images.files[p.first].path, images.files[p.second].path) for p in pairs
            )
            if first in place and other in place
        ]
        for equal in equal_images(files):
            links += [(place[equal[0].path], place[file.path]) for file in equal]
        return [[files[number] for number in group] for group in linked(links)]

    return grouped


def hold_out(
    images: ImageSet,
    fraction: float,
    *,
    seed: int = 0,
    group: Callable[[Sequence[ImageFile]], Groups] = equal_images,
) -> ImageSet:
    """Returns the images with a fraction of the training images of each class in val.

    Raises: FieldError if a class would have no image in val. In train every class keeps one,
    because the fraction is at most a half.
    """
    if not fraction:
        return images
    held = _choose(images, fraction, seed, group)
    if lacking := _classes_without(images, held):
        others = (f for f in LARGER if f > fraction)
        works = (f for f in others if not _classes_without(images, _choose(images, f, seed, group)))
        num = pluralize(sum(f.label == lacking[0] for f in images.split(Split.TRAIN)), "image")
        name, option = printable(images.classes[lacking[0]]), options_of(TrainConfig)[FIELD]
        raise FieldError(
            FIELD,
            f"val fraction {fraction:g} leaves class {name} ({num} in train/) without a validation "
            "image",
            f"skinjob submit {option.usage(next(works, 0))}",
        )
    files = (replace(f, split=Split.VAL.value) if f.path in held else f for f in images.files)
    return replace(images, files=tuple(files))


def _choose(
    images: ImageSet, fraction: float, seed: int, group: Callable[[Sequence[ImageFile]], Groups]
) -> set[str]:
    """Returns the paths of the images in val.

    Takes groups in the order of a hash of their content and the seed. A group that would make a
    class larger in val than the fraction, rounded, stays in train.
    """
    train = images.split(Split.TRAIN)
    room = {label: round(fraction * n) for label, n in Counter(f.label for f in train).items()}

    def draw(files: Sequence[ImageFile]) -> bytes:
        content = f"{seed}\0{min(file.sha256 for file in files)}"
        return hashlib.sha256(content.encode()).digest()

    held: set[str] = set()
    for files in sorted(group(train), key=draw):
        wanted = Counter(file.label for file in files)
        if all(count <= room[label] for label, count in wanted.items()):
            held.update(file.path for file in files)
            room = {label: left - wanted[label] for label, left in room.items()}
    return held


def _classes_without(images: ImageSet, held: set[str]) -> list[int]:
    """Returns the labels of the classes without an image in val."""
    labels = {file.label for file in images.files if file.path in held}
    return [label for label in range(len(images.classes)) if label not in labels]
