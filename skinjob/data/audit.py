"""Finds copies, empty images, and classes that a shortcut can tell apart.

The scan reduces each image to a sketch, and everything here is computed from the sketches. A near
copy passes two detectors. First its hash: the signs of 16 x 16 low frequencies, as in Facebook's
PDQ (2019), but of 32 x 32 grey levels. Then its pixels, at the best shift, brightness and contrast.
A hash alone fails on images of the same layout, such as dark ones or lesions in the middle
(deepchecks issue 1243).

`tests/benchmarks/copies.py` measures both limits on a folder of images. Of the 604,450 pairs of
1,100 lesions, 57 are within 80 bits. The pixels keep 19, all copies by eye, with correlations of
0.958 and more; the next pair has 0.938. Of 100 lesions saved at JPEG quality 10, halved, or 1.3
times brighter, all are found; of those that lost 5 % at each side, 41.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skinjob.console import progress
from skinjob.data.images import ImageFile, ImageSet, is_flat
from skinjob.ranks import auc

Array = NDArray[np.float32]

SIDE, EDGE, NUM_WAVES = 32, 2, 16
SKETCH = np.dtype(
    [
        ("size", "u4", 2),  # width and height in pixels
        ("mean", "f4", 3),  # RGB
        ("border", "f4", 3),  # RGB of the outer sixteenth
        ("spread", "f4"),  # standard deviation of the grey levels
        ("is_flat", "?"),
        ("grey", "u1", (SIDE, SIDE)),
    ]
)
"""What the scan keeps of an image: 1 KB."""

NUM_BITS = NUM_WAVES**2
MOST_BITS, MOST_BITS_TURNED = 80, 64  # that differ; seven other positions give chance more tries
LEAST_ALIKE = 0.943  # a third of the contrast may differ: 1 - 0.943 ** 2 is a ninth
MOST_SHIFT = 3  # of 32 pixels
LEAST_SPREAD = 2.0  # grey levels; the palest of 1,100 lesions has 5
TILE = 2048  # images whose hashes are compared at once: 16 MB
PAIRS_AT_ONCE = 64  # of which the pixels are compared; they stay in the processor's cache
MOST_CANDIDATES = 50_000  # pairs with similar hashes

EXACT, NEAR = "the same bytes", "nearly the same"
TURNS = (NEAR, *2 * ["mirrored"], "turned by 180°", "mirrored", *2 * ["turned by 90°"], "mirrored")
"""By number: 4 transposes the second image, 1 then reverses its rows, 2 its columns."""

RIDGE = 1.0  # scikit-learn's default, C = 1
WIDEST = 5.0  # standard deviations; wilder values are clipped
THUMBNAIL = 160  # pixels


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images that are copies of each other, by their positions in the image set."""

    first: int
    second: int
    kind: str
    bits: int = 0
    """Of 256 bits of the hash, how many differ."""
    alike: float = 1.0
    """Correlation of the pixels at the best shift."""


@dataclass(frozen=True, slots=True)
class Shortcut:
    """How far a classifier gets that knows file size, image size, border and mean colour only."""

    auc: float
    """On the test images; with several classes the mean of each against the rest."""
    class_aucs: tuple[float, ...]
    """Of each class against the rest."""
    accuracy: float
    loss: float
    """The mean cross-entropy on the test images."""
    majority: float
    """The accuracy of always answering the most frequent class of the training images."""

    def __str__(self) -> str:
        return (
            "file size, image size, border and mean colour alone reach "
            f"{100 * self.accuracy:.1f} % accuracy and AUC {self.auc:.3f} (always the largest "
            f"class: {100 * self.majority:.1f} %)"
        )


@dataclass(frozen=True)
class Audit:
    """The result for an image set that a scan returned."""

    images: ImageSet
    pairs: tuple[Pair, ...]
    """Pairs across splits first, then pairs across classes; the most similar first."""
    is_complete: bool
    """Whether all near copies were looked for: not if too many images look alike."""
    empty: tuple[int, ...]
    """Positions of images with almost nothing in them. Near copies of them are not looked for."""
    shortcut: Shortcut

    @property
    def groups(self) -> list[list[int]]:
        """Positions of the images that are linked by pairs, group by group."""
        return linked((pair.first, pair.second) for pair in self.pairs)

    def in_train_too(self) -> list[ImageFile]:
        """Returns the test images with a copy in train."""
        return leaked(self.images, self.pairs)


def sketch(image: Image.Image) -> NDArray[np.void]:
    """Returns the sketch of an RGB image, a scalar of type SKETCH."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    flat = is_flat(small) and is_flat(image)  # means differ less than pixels do
    colours, grey = np.asarray(small, np.float32), np.asarray(small.convert("L"))
    inner = colours[EDGE:-EDGE, EDGE:-EDGE]
    whole = colours.sum((0, 1))
    border = (whole - inner.sum((0, 1))) / (SIDE**2 - len(inner) ** 2)
    return np.array((image.size, whole / SIDE**2, border, grey.std(), flat, grey), SKETCH)


def audit(images: ImageSet) -> Audit:
    """Returns what is wrong with the images as a whole; shows a progress bar on a terminal.

    All pairs are compared, in eight positions: 10,000 images take seconds.
    """
    near, is_complete = near_pairs(images)
    files = images.files
    pairs = sorted(
        [*_exact_pairs(images), *near],
        key=lambda pair: (
            files[pair.first].split == files[pair.second].split,
            files[pair.first].label == files[pair.second].label,
            -pair.alike,
        ),
    )
    empty = np.flatnonzero(_is_empty(images)).tolist()
    return Audit(images, tuple(pairs), is_complete, tuple(empty), shortcut(images))


def with_copies(images: ImageSet, pairs: Iterable[Pair]) -> ImageSet:
    """Returns the images, each with the number of the group that *pairs* and equal bytes link."""
    links = [(pair.first, pair.second) for pair in (*pairs, *_exact_pairs(images))]
    number = {place: n for n, group in enumerate(linked(links), 1) for place in group}
    files = (replace(file, copies=number.get(n, 0)) for n, file in enumerate(images.files))
    return replace(images, files=tuple(files))


def leaked(images: ImageSet, pairs: Iterable[Pair]) -> list[ImageFile]:
    """Returns the test images that are linked to a training image by *pairs*."""
    files = images.files
    groups = linked((pair.first, pair.second) for pair in pairs)
    mixed = [group for group in groups if len({files[i].split for i in group}) > 1]
    return [files[i] for i in sorted(chain(*mixed)) if files[i].split == "test"]


def linked(links: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Returns the groups of numbers that *links* connect, each sorted, by its first number.

    >>> linked([(1, 5), (2, 3), (5, 7)])
    [[1, 5, 7], [2, 3]]
    """
    group_of: dict[int, list[int]] = {}
    for first, second in links:
        group, other = (group_of.setdefault(i, [i]) for i in (first, second))
        if group is not other:
            group += other
            group_of.update(dict.fromkeys(other, group))
    return sorted(sorted(group) for group in {id(g): g for g in group_of.values()}.values())


def _firsts(images: ImageSet) -> dict[str, int]:
    """Returns the position of the first image with each digest."""
    return {file.sha256: i for i, file in reversed([*enumerate(images.files)])}


def _exact_pairs(images: ImageSet) -> list[Pair]:
    firsts = _firsts(images)
    places = ((firsts[file.sha256], i) for i, file in enumerate(images.files))
    return [Pair(first, i, EXACT) for first, i in places if first != i]


def _sketches(images: ImageSet) -> NDArray[np.void]:
    assert images.sketches is not None, "only a scan makes sketches"
    return images.sketches


def _is_empty(images: ImageSet) -> NDArray[np.bool_]:
    sketches = _sketches(images)
    return np.asarray(sketches["is_flat"] | (sketches["spread"] < LEAST_SPREAD))


def near_pairs(
    images: ImageSet,
    *,
    turns: Sequence[int] = range(len(TURNS)),
    splits: tuple[str, str] | None = None,
) -> tuple[list[Pair], bool]:
    """Returns the near copies among images of different bytes, and whether the search was complete.

    *turns* are positions in TURNS. With *splits*, only pairs of an image of the first and an image
    of the second.
    """
    grey = _sketches(images)["grey"]
    used = np.array(sorted(_firsts(images).values()))
    used = used[~_is_empty(images)[used]]
    if not len(used):
        return [], True
    signs = np.concatenate([_signs(grey[used[i : i + TILE]]) for i in range(0, len(used), TILE)])
    split_of = np.array([images.files[place].split for place in used])
    rows, columns = (
        (np.flatnonzero(split_of == s) for s in splits) if splits else 2 * [np.arange(len(used))]
    )
    tiles = [
        (turn, rows[top : top + TILE], columns[left : left + TILE])
        for turn in turns
        for top in range(0, len(rows), TILE)
        for left in range(0, len(columns), TILE)
    ]
    tiles = [tile for tile in tiles if tile[1][0] < tile[2][-1]]
    pairs: dict[tuple[int, int], Pair] = {}
    num_candidates = 0
    with progress("comparing images", len(tiles)) as draw:
        for done, (turn, top, left) in enumerate(tiles, start=1):
            same = _agreement(signs[top], _turned_signs(signs[left], turn))
            most = MOST_BITS_TURNED if turn else MOST_BITS
            i, j = np.nonzero(same >= NUM_BITS - 2 * most)
            is_new = top[i] < left[j]  # each pair once, no image with itself
            i, j = i[is_new], j[is_new]
            num_candidates += len(i)
            if num_candidates > MOST_CANDIDATES:
                return [*pairs.values()], False
            firsts, seconds = used[top[i]], used[left[j]]
            alike = _alike(grey[firsts], _turned(grey[seconds], turn))
            for place in np.flatnonzero(alike >= LEAST_ALIKE):
                pair = Pair(
                    int(firsts[place]),
                    int(seconds[place]),
                    TURNS[turn],
                    int(NUM_BITS - same[i[place], j[place]]) // 2,
                    round(float(alike[place]), 3),
                )
                key = pair.first, pair.second
                pairs[key] = max(pairs.get(key, pair), pair, key=lambda pair: pair.alike)
            draw(done)
    return [*pairs.values()], True


def _signs(grey: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Returns the signs of the waves 1 to 16 of the cosine transform, (N, 16, 16)."""
    waves, places = np.arange(1, NUM_WAVES + 1)[:, None], np.arange(SIDE)
    cosines = np.cos(np.pi * waves * (2 * places + 1) / (2 * SIDE)).astype(np.float32)
    signs = np.sign(cosines @ grey.astype(np.float32) @ cosines.T)
    return np.asarray(signs, np.int8)


def _agreement(first: NDArray[np.int8], second: NDArray[np.int8]) -> Array:
    """Returns 256 minus twice the Hamming distance for each pair of two lists of hashes, (N, M)."""
    a, b = (signs.reshape(len(signs), NUM_BITS).astype(np.float32) for signs in (first, second))
    return a @ b.T


def _turned(images: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    """Returns images (N, S, S) turned as TURNS says."""
    images = images.transpose(0, 2, 1) if turn & 4 else images
    return images[:, :: -1 if turn & 1 else 1, :: -1 if turn & 2 else 1]


def _turned_signs(signs: NDArray[np.int8], turn: int) -> NDArray[np.int8]:
    """Returns the signs of turned images: a reversed image has its odd waves negated."""
    signs = signs.transpose(0, 2, 1) if turn & 4 else signs
    negated = np.where(np.arange(1, NUM_WAVES + 1) % 2, -1, 1).astype(np.int8)
    rows, columns = (negated if turn & bit else np.ones_like(negated) for bit in (1, 2))
    return np.asarray(signs * rows[:, None] * columns)


def _alike(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Array:
    """Returns the correlations of pairs of grey images where they overlap, at the best shift.

    The images are (P, 32, 32), the correlations (P,).
    """
    best = np.full(len(first), -1, np.float32)
    shifts = [*product(range(-MOST_SHIFT, MOST_SHIFT + 1), repeat=2)]
    for start in range(0, len(first), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        for down, right in shifts:
            a, b = _overlap(first[part], down, right), _overlap(second[part], -down, -right)
            norms = np.sqrt(np.einsum("pi,pi->p", a, a) * np.einsum("pi,pi->p", b, b))
            best[part] = np.maximum(best[part], np.einsum("pi,pi->p", a, b) / (norms + 1e-6))
    return best


def _overlap(images: NDArray[np.uint8], down: int, right: int) -> Array:
    """Returns what images and their shifted partners share, as vectors of mean 0, (P, pixels)."""
    rows = slice(max(down, 0), SIDE + min(down, 0))
    columns = slice(max(right, 0), SIDE + min(right, 0))
    part = images[:, rows, columns].reshape(len(images), -1).astype(np.float32)
    return np.asarray(part - part.mean(1, keepdims=True))


def shortcut(images: ImageSet) -> Shortcut:
    """Returns the result of a logistic regression, fitted to train, on the images of test.

    Its inputs are the logarithms of file size, width and height, the border's colour and the mean
    colour, and the squares of these nine numbers, because a class can lie at both ends.
    """
    sketches = _sketches(images)
    sizes = np.column_stack([[file.bytes for file in images.files], sketches["size"]])
    facts = np.column_stack([np.log(sizes), sketches["mean"], sketches["border"]])
    labels = np.array([file.label for file in images.files])
    is_train, is_test = (
        np.array([file.split == split for file in images.files]) for split in ("train", "test")
    )
    train, test = labels[is_train], labels[is_test]
    spread = facts[is_train].std(0)
    facts = (facts - facts[is_train].mean(0)) / np.where(spread > 1e-9, spread, 1)
    facts = facts.clip(-WIDEST, WIDEST)
    inputs = np.column_stack([np.ones(len(facts)), facts, facts**2])
    classes = range(len(images.classes))
    weights = np.column_stack([_fitted(inputs[is_train], train == label) for label in classes])
    scores = inputs[is_test] @ weights  # (N, classes)
    chances = _chances(scores)
    own = chances[np.arange(len(test)), test] / chances.sum(1)
    aucs = [float(auc(scores[:, label], test == label)) for label in classes]
    return Shortcut(
        auc=float(np.mean(aucs)),
        class_aucs=tuple(aucs),
        accuracy=float(np.mean(scores.argmax(1) == test)),
        loss=float(-np.log(own).mean()),
        majority=float(np.mean(test == np.bincount(train).argmax())),
    )


def _fitted(inputs: NDArray[np.float64], is_class: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns the weights of a logistic regression, by Newton's method; the first is free."""
    penalty = RIDGE * np.eye(inputs.shape[1])
    penalty[0, 0] = 0
    weights = np.zeros(inputs.shape[1])
    for _ in range(50):
        chance = _chances(inputs @ weights)
        slope = inputs.T @ (chance - is_class) + penalty @ weights
        curvature = inputs.T * (chance * (1 - chance)) @ inputs + penalty
        step = np.linalg.solve(curvature, slope)
        weights -= step
        if np.abs(step).max() < 1e-6:
            break
    return weights


def _chances(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the probabilities of logits, none of them 0 or 1."""
    chances: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(scores, -30, 30)))
    return chances


def thumbnail(images: ImageSet, place: int) -> str:
    """Returns a small JPEG of an image in base64, with its pixels only: no EXIF, no comment.

    Raises: ImagesError if the file has changed since the scan.
    """
    image = images.files[place].read(images.store)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.info.clear()  # Pillow would write comments and colour profiles
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return base64.b64encode(content.getvalue()).decode("ascii")
